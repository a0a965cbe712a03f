"""What the two branches of a model have in common and apart: spectra, eigenspaces, the measured filter.

P is the online output and T the target's, row i of both from the same image. v_i are the target's right singular
vectors and s_i its singular values. Nothing here carries a gradient; all is float64.

Shapes: N rows, D columns, R = min(N, D), R' the target's numerical rank (in its null space vectors are arbitrary).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rankgap.errors import NonFiniteError, UserError
from rankgap.spectra.gram import check_batch, gram_basis, singular_values

Side = Literal["online", "target"]  # of a two-branch model

_TIE = 1e-6  # gains closer than this, relatively, count as equal


class PairSpectrum(NamedTuple):
    """How the online output stands to the target's.

    Attributes:
        spectrum_online: singular values (R,), descending.
        spectrum_target: likewise.
        alignment: a_i = |cos(C_p v_i, v_i)| (R',), see `eigenspace_alignment`.
        measured_filter: g_i = |P v_i| / |T v_i| (R',), beside the first R' of `spectrum_target`.
        transfer: h_i = (P v_i . T v_i) / |T v_i|^2 (R',), see `transfer`.
        rows: N.
    """

    spectrum_online: Tensor
    spectrum_target: Tensor
    alignment: Tensor
    measured_filter: Tensor
    transfer: Tensor
    rows: int

    @property
    def low_pass_score(self) -> Tensor:
        """1: the online branch is a low-pass of the target, -1: a high-pass, 0: neither (`low_pass_score`)."""
        return low_pass_score(self.spectrum_target[: len(self.measured_filter)], self.measured_filter)

    @property
    def transfer_score(self) -> Tensor:
        """The same of the transfer: of what passes along each direction, without what leaks in from others."""
        return low_pass_score(self.spectrum_target[: len(self.transfer)], self.transfer)


def pair_spectrum(online: Tensor, target: Tensor) -> PairSpectrum:
    """Spectra, eigenspace alignment and measured filter of one batch, by two decompositions of Gram matrices.

    Args:
        online: P (N, D).
        target: T (N, D).

    Raises:
        UserError: the batches are not two (N, D) of one shape.
        NonFiniteError: either has a NaN or an infinity.
    """
    for z in (online, target):
        check_batch(z, "a pair of branches")
    if online.shape != target.shape or online.ndim != 2:
        raise UserError(
            f"a pair of branches is two batches of one shape (N, D), got {tuple(online.shape)} and "
            f"{tuple(target.shape)}"
        )
    if not online.isfinite().all():
        raise NonFiniteError("a pair of branches: the online batch is not finite")
    s, vectors, keep = gram_basis(target, "a pair of branches")
    p, t = online.detach().double(), target.detach().double()
    v = vectors[:, keep]
    if len(t) <= t.shape[1]:  # the smaller Gram matrix knew the left vectors
        v = t.mT @ v / s[keep]  # (D, R')
    seen, sent = p @ v, t @ v  # (N, R')
    return PairSpectrum(
        spectrum_online=singular_values(p),
        spectrum_target=torch.where(keep, s, 0.0),
        alignment=image_alignment(p.mT @ seen, v),
        measured_filter=seen.norm(dim=0) / sent.norm(dim=0),
        transfer=(seen * sent).sum(0) / sent.square().sum(0),
        rows=len(p),
    )


def image_alignment(image: Tensor, v: Tensor) -> Tensor:
    """|cos| between vectors and their images, column by column: (D, R'), (D, R') -> (R',); 0 for a zero image."""
    return torch.cosine_similarity(image, v, dim=0, eps=torch.finfo(torch.float64).tiny).abs()


def eigenspace_alignment(online: Tensor, target: Tensor, top: int = 512) -> Tensor:
    """How far the target's eigenvectors are the online branch's too: a_i = |cos(C_p v_i, v_i)|, in [0, 1].

    v_i are the eigenvectors of C_t = T^T T / N by falling eigenvalue, C_p = P^T P / N (RDM, which
    averages over the top 512). 1: v_i is an eigenvector of C_p. 0 where the online branch has no energy.

    Args:
        online: P (N, D).
        target: T (N, D).
        top: eigenvectors at most.

    Returns:
        (min(top, R'),).

    Raises:
        UserError: the batches are not two (N, D) of one shape.
        NonFiniteError: either has a NaN or an infinity.
    """
    return pair_spectrum(online, target).alignment[:top]


def measured_filter(online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gain that the online branch shows on the target's directions: g_i = |P v_i| / |T v_i| against s_i.

    It shows a predictor, Sinkhorn's codes or centring as the spectral filter that they amount to;
    `low_pass_score` says of which kind.

    Args:
        online: P (N, D).
        target: T (N, D).

    Returns:
        s (R',) descending and g (R',).

    Raises:
        UserError: the batches are not two (N, D) of one shape.
        NonFiniteError: either has a NaN or an infinity.

    Example:
        >>> target = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
        >>> s, g = measured_filter(target @ target / 4, target)
        >>> g
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
        >>> low_pass_score(s, g)
        tensor(1., dtype=torch.float64)
    """
    pair = pair_spectrum(online, target)
    return pair.spectrum_target[: len(pair.measured_filter)], pair.measured_filter


def transfer(online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What of each of the target's directions the online branch passes on along that direction itself.

    h_i = (P v_i . T v_i) / |T v_i|^2, the least-squares gain (the H1 estimate of a transfer function, Bendat &
    Piersol). T's columns T v_i are orthogonal, so that h_i = v_i^T W v_i wherever P = T W, whatever W is: energy
    that W brings from other directions, and what P has of its own (a mean where T has none), leave it alone, while
    `measured_filter` counts them (|h_i| <= g_i). Where P is a spectral filter of T both are its gain.

    Args:
        online: P (N, D).
        target: T (N, D).

    Returns:
        s (R',) descending and h (R',), which may be negative.

    Raises:
        UserError: the batches are not two (N, D) of one shape.
        NonFiniteError: either has a NaN or an infinity.

    Example:
        >>> target = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
        >>> s, h = transfer(target @ torch.tensor([[1.0, 0, 3], [0, 0.5, 0], [0, 0, 0.2]]), target)
        >>> h
        tensor([1.0000, 0.5000, 0.2000], dtype=torch.float64)
    """
    pair = pair_spectrum(online, target)
    return pair.spectrum_target[: len(pair.transfer)], pair.transfer


def low_pass_score(s: Tensor, g: Tensor) -> Tensor:
    """Weighted rank correlation of log g with log s: 1 is low-pass, -1 high-pass, 0 neither.

    Kendall's correlation over the pairs that are not tied (Goodman & Kruskal's gamma), each pair weighted by its
    target energies s_i^2 s_j^2: of two directions drawn by energy, how much more often the stronger has the
    larger gain than the smaller one. Ranks do not see the logarithm. Gains within 1e-6 of one another are tied;
    where all are (the identity), the score is 0.

    Args:
        s: singular values of the target (R,).
        g: measured gains, or transfers (R,).

    Returns:
        0-d, in [-1, 1], float64. Memory is R^2.
    """
    s, g = s.double(), g.double()
    rises = torch.sign(s[:, None] - s)
    larger = torch.where(
        (g[:, None] - g).abs() > _TIE * torch.maximum(g[:, None].abs(), g.abs()), torch.sign(g[:, None] - g), 0.0
    )
    energy = (s / s.norm()).square()
    weight = energy[:, None] * energy
    agreement = weight * rises * larger
    score: Tensor = agreement.sum() / agreement.abs().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return score
