"""Scores of features without labels, beside `effective_rank` and `rankme`: one function each, as published.

Libraries differ in what they compute under one name, so each docstring says which matrix, spectrum and constant it
means. The scores carry no gradient and are computed in float64.

Shapes: N rows (images), D columns, q views per image; l_1 >= l_2 >= ... are the eigenvalues of Z^T Z / N.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import checked_spectrum, exp_entropy
from rankgap.spectra.float64 import double
from rankgap.spectra.gram import check_batch, check_finite, solve_gram

_EPS = 1e-7  # of RankMe; LiDAR uses the same
_ROUNDED = 1e-7  # differences of distances below this share of a row's length are rounding


def stable_rank(z: Tensor, *, center: bool = False) -> Tensor:
    """|Z|_F^2 / |Z|_2^2 = sum_i s_i^2 / s_1^2 (Rudelson & Vershynin 2007), in [1, min(N, D)].

    Args:
        z: (..., N, D), any float dtype.
        center: subtract the mean row first.

    Raises:
        UserError: `z` is not a batch of finite numbers, or is all zero.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
        tensor(1.8750, dtype=torch.float64)
    """
    energy = checked_spectrum(z, "stable_rank", center=center).square()
    return energy.sum(-1) / energy[..., 0]


def participation_ratio(z: Tensor, *, center: bool = False) -> Tensor:
    """(sum l)^2 / sum l^2, in [1, min(N, D)]; a sample's value is too small by a share of about 1/N + 1/D.

    Args:
        z: (..., N, D), any float dtype.
        center: subtract the mean row first.

    Raises:
        UserError: `z` is not a batch of finite numbers, or is all zero.
    """
    energy = checked_spectrum(z, "participation_ratio", center=center).square()
    return energy.sum(-1).square() / energy.square().sum(-1)


def nesum(z: Tensor) -> Tensor:
    """NESum: sum_j l_j / l_1 of the centred covariance (He & Ozay 2022).

    Args:
        z: (..., N, D), any float dtype.

    Raises:
        UserError: `z` is not a batch of finite numbers, or all its rows are equal.
    """
    return stable_rank(z, center=True)


def alpha_req(z: Tensor, *, first: int = 4, last: int = 100) -> Tensor:
    """alpha-ReQ: the exponent of l_j ~ j^-alpha (Agrawal et al. 2022); about 1 is best, above it dimensions die.

    A least-squares fit of ln l_j on ln j with weights 1/j, over the eigenvalues `first` to `last` of the centred
    covariance, as in the authors' code. Eigenvalues of 0 are left out.

    Args:
        z: (N, D), any float dtype.
        first: the first eigenvalue of the fit; the largest is number 1.
        last: the last eigenvalue of the fit.

    Raises:
        UserError: `z` is not a batch of finite numbers, or fewer than two eigenvalues are left to fit.
    """
    energy = checked_spectrum(z, "alpha_req", center=True).square()[first - 1 : last]
    energy = energy[energy > 0]
    if len(energy) < 2:
        raise UserError(
            f"alpha_req needs two eigenvalues above 0 among numbers {first} to {last}, got {len(energy)}; pass "
            "more rows or columns"
        )
    number = torch.arange(first, first + len(energy), dtype=torch.float64, device=energy.device)
    weight = (1 / number) / (1 / number).sum()
    x, y = number.log(), energy.log()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    slope: Tensor = (weight * x * y).sum() / (weight * x * x).sum()
    return -slope


def lidar(z: Tensor, *, delta: float = 1e-4) -> Tensor:
    """LiDAR: RankMe of the eigenvalues of Sw^-1/2 Sb Sw^-1/2 (Thilak et al. 2024).

    Sb is the covariance of the images' means about the grand mean. Sw is the covariance of the views about their
    image's mean, plus delta I. The score needs q views of each image, drawn as in training.

    Args:
        z: (N, q, D), any float dtype; q >= 2.
        delta: the number added to Sw's diagonal.

    Raises:
        UserError: `z` has another shape, or values that are not finite.
    """
    check_batch(z, "lidar")
    if z.ndim != 3 or z.shape[1] < 2 or z.shape[0] < 2:
        raise UserError(f"lidar expects (N, q, D) with N >= 2 and q >= 2, got {tuple(z.shape)}")
    check_finite(z, "lidar")
    z = double(z.detach())
    means = z.mean(1)  # (N, D)
    within = (z - means[:, None]).flatten(0, 1)
    between = means - means.mean(0)
    sw = within.mT @ within / len(within) + delta * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    eigenvalues, vectors = solve_gram(torch.linalg.eigh, sw, "lidar")
    white = between @ (vectors * eigenvalues.rsqrt())  # its Gram matrix over N is the whitened Sb
    energy = torch.linalg.svdvals(white).square()
    return exp_entropy(energy / energy.sum().clamp_min(torch.finfo(z.dtype).tiny) + _EPS)


def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    """The uniformity loss, ln mean exp(-t |x_i - x_j|^2) over pairs of unit rows (Wang & Isola 2020, eq. 2).

    Lower is better.

    Args:
        z: (N, D), N >= 2; rows are scaled to length 1.
        t: sharpness.

    Returns:
        0-d, in [-4 t, 0].

    Raises:
        UserError: `z` is not (N, D) with two rows or more.
    """
    check_batch(z, "uniformity")
    if z.ndim != 2 or len(z) < 2:
        raise UserError(f"uniformity expects (N, D) with N >= 2, got {tuple(z.shape)}")
    unit = F.normalize(double(z.detach()), dim=-1)
    squares = torch.pdist(unit).square()
    return (-t * squares).exp().mean().log()


def alignment(z: Tensor, other: Tensor, *, power: float = 2.0) -> Tensor:
    """The alignment loss, mean |x_i - y_i|^power over pairs of unit rows (Wang & Isola 2020, eq. 1).

    Lower is better.

    Args:
        z: (N, D), features of one view.
        other: (N, D), features of another view of the same images.
        power: the exponent of the distance.

    Returns:
        0-d, in [0, 2^power].

    Raises:
        UserError: the two are not (N, D) of one shape.
    """
    check_batch(z, "alignment")
    if z.shape != other.shape or z.ndim != 2:
        raise UserError(
            f"alignment expects two batches of one shape (N, D), got {tuple(z.shape)} and {tuple(other.shape)}"
        )
    x, y = (F.normalize(double(v.detach()), dim=-1) for v in (z, other))
    mean: Tensor = (x - y).norm(dim=-1).pow(power).mean()
    return mean


def intrinsic_dimension(z: Tensor, *, discard: float = 0.1) -> Tensor:
    """TwoNN, from the distances to the first and second neighbour (Facco et al. 2017): the ID of CLID.

    With mu = r_2 / r_1 and its distribution function F, -ln(1 - F(mu)) = d ln mu. d is the slope of a line through
    the origin, fitted without the largest `discard` of the ratios, as the authors do. Rows that occur twice are
    left out, because their r_1 is 0.

    Args:
        z: (N, D), any float dtype.
        discard: the share of the largest ratios that is left out, in [0, 1).

    Raises:
        UserError: there are fewer than three distinct rows.
    """
    check_batch(z, "intrinsic_dimension")
    z = double(z.detach())
    nearest = torch.cdist(z, z).topk(min(3, len(z)), largest=False).values
    nearest = nearest[nearest[:, 1] > 0] if nearest.shape[1] == 3 else nearest[:0]
    if len(nearest) < 3:
        raise UserError(
            f"intrinsic_dimension needs three distinct rows or more, got {len(nearest)} in {tuple(z.shape)}"
        )
    mu = (nearest[:, 2] / nearest[:, 1]).log().sort().values
    kept = max(round((1 - discard) * len(mu)), 2)
    share = torch.arange(1, len(mu) + 1, dtype=mu.dtype, device=mu.device) / len(mu)
    x, y = mu[:kept], -(1 - share[:kept]).clamp_min(1 / (2 * len(mu))).log()
    slope: Tensor = (x * y).sum() / x.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    return slope


def log_local_dimension(z: Tensor, *, k: int = 64) -> Tensor:
    """The mean of ln LID over rows, each with its local intrinsic dimension: LDReg's measure (Huang et al. 2024).

    LID = -mu / (mu - w), where mu is the mean distance to the k nearest rows and w that to the k-th of them (the
    method of moments, Amsaleg et al. 2018). Features may span many dimensions and still lie on a sheet of few,
    which no spectrum shows. For rows spread evenly in d dimensions, LID is about (k d + 1) / (k - 1). It depends
    on k and N: the more rows, the nearer is the k-th neighbour.

    LDReg's code takes mu over the k - 1 nearest, without the k-th; its LID is lower by about (d + 1) / (k - 1).
    Rows whose k nearest are all equally far, such as copies, have no LID and are left out.

    Args:
        z: (N, D), any float dtype, N > k.
        k: the number of neighbours.

    Returns:
        0-d, float64, no gradient.

    Raises:
        UserError: `z` is not a batch of finite numbers, has k rows or fewer, or no row has an LID.
    """
    check_batch(z, "log_local_dimension")
    if z.ndim != 2 or len(z) <= k:
        raise UserError(f"log_local_dimension expects (N, D) with N > k = {k}, got {tuple(z.shape)}")
    check_finite(z, "log_local_dimension")
    z = double(z.detach())
    z = z - z.mean(0)  # distances are found from products, which a large mean would round
    nearest = torch.cdist(z, z).fill_diagonal_(torch.inf).topk(k, largest=False).values  # (N, k), ascending
    mean, last = nearest.mean(1), nearest[:, -1]
    known = last - mean > _ROUNDED * z.norm(dim=1)
    if not known.any():
        raise UserError(f"log_local_dimension: no row has {k} neighbours at different distances")
    return (mean / (last - mean))[known].log().mean()


def cluster_learnability(z: Tensor, *, clusters: int = 10, seed: int = 0) -> Tensor:
    """CLID's CL: how fast a nearest-neighbour classifier learns the labels of k-means (Lu et al. 2022), in [0, 1].

    Rows, scaled to length 1, arrive one after another in a random order, and each is predicted from its nearest
    predecessor. The score is the accuracy over all rows but the first (the authors' learning speed, with k = 1).
    Higher is better, but a constant encoder also has 1, so read it together with `intrinsic_dimension`. The
    paper's CLID adds the two, standardised over the models that are compared.

    Args:
        z: (N, D), any float dtype.
        clusters: the number of clusters of k-means.
        seed: of k-means and of the order.

    Raises:
        UserError: there are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans  # imported here, because it would delay every command
    from sklearn.exceptions import ConvergenceWarning

    check_batch(z, "cluster_learnability")
    if z.ndim != 2 or len(z) < clusters or len(z) < 2:
        raise UserError(f"cluster_learnability expects (N, D) with N >= {max(clusters, 2)}, got {tuple(z.shape)}")
    z = double(z.detach())
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed)).to(z.device)
    rows = F.normalize(z, dim=-1)[order]
    with warnings.catch_warnings():  # of a collapsed encoder, which has fewer clusters; its score shows that
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=3, random_state=seed).fit_predict(rows.cpu().numpy())
    labels = torch.as_tensor(found, device=z.device)
    later = torch.ones(len(rows), len(rows), dtype=torch.bool, device=z.device).triu()
    similarity = (rows @ rows.mT).masked_fill(later, -2.0)  # below any cosine
    predicted = labels[similarity[1:].argmax(-1)]
    return (predicted == labels[1:]).double().mean()
