"""The structure of tokens without labels: what an effective rank of images does not see.

Shapes: B images, T tokens (patches, or places of a feature map) of each, D columns.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.float64 import double
from rankgap.spectra.gram import check_batch, check_finite

LOCAL, GLOBAL, GROUP = 3, 24, 8  # clusters of one image's tokens; clusters of a group's tokens; images in a group


class DenseStructure(NamedTuple):
    """The parts of DSE, each 0-d float64. The first three are over the tokens' mean distance from their mean.

    Attributes:
        separation: M_inter, the mean distance of a token from the nearest centre of a cluster that is not its own.
        image_spread: M_intra over one image, the spread of the clusters of its tokens.
        group_spread: M_intra over a group of images, the spread of the clusters of their tokens.
        dimension: M_dim, the effective rank of tokens of different images as a share of its maximum.
    """

    separation: Tensor
    image_spread: Tensor
    group_spread: Tensor
    dimension: Tensor

    @property
    def separability(self) -> Tensor:
        """M_inter - M_intra, with M_intra the mean over one image and over a group, 0-d."""
        return self.separation - (self.image_spread + self.group_spread) / 2


def dse(z: Tensor, *, seed: int = 0) -> Tensor:
    """The Dense representation Structure Estimator, M_inter - M_intra + M_dim (Dai et al., NeurIPS 2025).

    Higher is better for dense tasks, such as segmentation, on which an encoder can become worse while its accuracy
    on whole images rises. `dense_structure` gives the three parts and says how they are measured.

    The paper weights M_dim by a lambda. Its authors take it from standard deviations over the checkpoints that are
    compared, which one encoder does not have. So the weight is 1 here, as in the score that their code prints for
    each checkpoint; to weight the terms otherwise, take them from `dense_structure`.

    Args:
        z: (B, T, D), any float dtype; B >= 8 and T >= 4.
        seed: of k-means, and of the tokens that M_dim takes.

    Returns:
        0-d, float64, on the CPU, no gradient.

    Raises:
        UserError: as `dense_structure`.
    """
    found = dense_structure(z, seed=seed)
    return found.separability + found.dimension


def dense_structure(z: Tensor, *, seed: int = 0) -> DenseStructure:
    """The parts of DSE, as in the authors' code (EldercatSAM/SSL-Degradation, `compute_DSE`).

    Tokens are scaled to length 1. K-means finds 3 clusters of each image's tokens, and 24 of those of 8 images.
    The spread of a cluster of n tokens is its centred nuclear norm over sqrt(max(n - 1, D)); a cluster of one has
    none. M_intra is the mean over clusters, for one image and for 8. M_inter is of the clusters of 8 images: where
    their tokens have fewer than 24 kinds, a kind is cut, and M_inter falls however well kinds are separated. M_dim
    is an effective rank (of="features", uncentred) over min(B, D): that of B tokens, one random token of each
    image, averaged over T such draws, which share no token.

    From the command that the authors publish: the unit length, 3, 24 and 8. Ours: k-means is scikit-learn's, with
    one start (theirs weights its first centres by distance, scikit-learn's by squared distance), and images that
    do not fill a group of 8 are in no group.

    Args:
        z: (B, T, D), any float dtype; B >= 8 and T >= 4.
        seed: of k-means, and of the tokens that M_dim takes.

    Returns:
        The parts, on the CPU, no gradient.

    Raises:
        UserError: `z` has another shape, values that are not finite, or tokens that all point one way.
    """
    check_batch(z, "dense_structure")
    if z.ndim != 3 or len(z) < GROUP or z.shape[1] <= LOCAL:
        raise UserError(
            f"dense_structure expects tokens (B, T, D) with B >= {GROUP} and T > {LOCAL}, got {tuple(z.shape)}"
        )
    check_finite(z, "dense_structure")
    z = F.normalize(double(z.detach()).cpu(), dim=-1)
    unit = (z - z.mean((0, 1))).norm(dim=-1).mean()
    if unit < 1e-12:
        raise UserError("dense_structure: all tokens point one way, so they have no clusters")
    images = [_clustered(each, LOCAL, seed)[0] for each in z]
    groups = [_clustered(each.flatten(0, 1), GLOBAL, seed) for each in z.split(GROUP) if len(each) == GROUP]
    return DenseStructure(
        separation=torch.stack([separation for _, separation in groups]).mean() / unit,
        image_spread=torch.stack([spreads.mean() for spreads in images]).mean() / unit,
        group_spread=torch.cat([spreads for spreads, _ in groups]).mean() / unit,
        dimension=_dimension(z, seed),
    )


def _clustered(rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The spread of each cluster of two rows or more, and the mean distance of a row from another's centre.

    Args:
        rows: (N, D), N > count.
        count: the number of clusters.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans  # imported here, because it would delay every command
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # of equal rows, which have fewer clusters; the scores show that
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=seed).fit(rows.numpy())
    labels, centres = torch.as_tensor(found.labels_, dtype=torch.int64), torch.from_numpy(found.cluster_centers_)
    clusters = [rows[labels == label] for label in range(count)]
    spreads = [_spread(cluster) for cluster in clusters if len(cluster) > 1]
    others = torch.cdist(rows, centres).scatter(1, labels[:, None], torch.inf)  # (N, count)
    return torch.stack(spreads), others.amin(1).mean()


def _spread(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.svdvals(rows - rows.mean(0)).sum()
    return norm / math.sqrt(max(len(rows) - 1, rows.shape[1]))


def _dimension(z: Tensor, seed: int) -> Tensor:
    """Mean effective rank of T batches of B tokens, each with one token of every image, over its maximum."""
    images, tokens, width = z.shape
    order = torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    shuffled = z.gather(1, order[..., None].expand_as(z)).transpose(0, 1)  # (T, B, D)
    rank: Tensor = effective_rank(shuffled, of="features").mean()
    return rank / min(images, width)
