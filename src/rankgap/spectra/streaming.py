"""Spectra of more rows than memory holds: batches are added up, ranks of a distributed run too.

The metrics keep float64 sums of outer products Z^T Z, (D, D), whatever the number of rows: 32 MiB each at
D = 2048.
A float32 covariance would lose all singular values below 3e-4 s_1; in float64 those above 6e-8 s_1 are kept, and
over six decades each is accurate to 1e-3 (relative to an SVD in float64; held by a test at D = 2048).

Shapes: N rows so far, D columns, R = min(N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import Convention, effective_rank_of
from rankgap.spectra.gram import above_noise, check_batch, solve_gram
from rankgap.spectra.pair import PairSpectrum, image_alignment


class EffectiveRank(Metric):
    """Effective rank of all rows seen, as `spectra.effective_rank` of one batch.

    Args:
        width: D.
        of: "correlation" or "features", as in `effective_rank`.
        center: take the mean row away.

    Example:
        >>> rank = EffectiveRank(5)
        >>> for row in torch.eye(5):
        ...     rank.update(row[None])
        >>> round(float(rank.compute()), 6)
        5.0
    """

    full_state_update = False
    gram: Tensor
    total: Tensor
    rows: Tensor

    def __init__(self, width: int, *, of: Convention = "correlation", center: bool = False) -> None:
        super().__init__()
        self.width, self.of, self.center = width, of, center
        self.add_state("gram", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        """Add a batch (N, D), any float dtype.

        Raises:
            UserError: another shape, or values that are not finite.
        """
        z = _checked(z, self.width, "EffectiveRank")
        self.gram += z.mT @ z
        self.total += z.sum(0)
        self.rows += len(z)

    def spectrum(self) -> Tensor:
        """Singular values of all rows (R,), float64, descending."""
        _check_any(self.rows)
        gram = self.gram
        if self.center:
            gram = gram - torch.outer(self.total, self.total) / self.rows
        eigenvalues = solve_gram(torch.linalg.eigvalsh, gram, "EffectiveRank").flip(-1)
        return above_noise(eigenvalues).sqrt()[: int(self.rows)]

    def compute(self) -> Tensor:
        """0-d, float64.

        Raises:
            UserError: no row was added, or all are zero.
        """
        s = self.spectrum()
        if not s[0] > 0:
            raise UserError("EffectiveRank: all values are zero, so no rank is defined")
        return effective_rank_of(s, self.of)


class PairSpectra(Metric):
    """Spectra, eigenspace alignment, measured filter and transfer of paired outputs, over all rows seen.

    Args:
        width: D of both.
    """

    full_state_update = False
    gram_online: Tensor
    gram_target: Tensor
    cross: Tensor
    rows: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        for name in ("gram_online", "gram_target", "cross"):
            self.add_state(name, torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, online: Tensor, target: Tensor) -> None:
        """Add P (N, D) and T (N, D): row i of both comes from the same image.

        Raises:
            UserError: other shapes, or values that are not finite.
        """
        p, t = _checked(online, self.width, "online"), _checked(target, self.width, "target")
        if len(p) != len(t):
            raise UserError(f"online has {len(p)} rows and target {len(t)}: they are compared row by row")
        self.gram_online += p.mT @ p
        self.gram_target += t.mT @ t
        self.cross += p.mT @ t
        self.rows += len(p)

    def compute(self) -> PairSpectrum:
        """Of all rows of all ranks.

        Raises:
            UserError: no row was added.
        """
        _check_any(self.rows)
        count = int(self.rows)
        online = above_noise(solve_gram(torch.linalg.eigvalsh, self.gram_online, "online spectrum").flip(-1))
        eigenvalues, vectors = solve_gram(torch.linalg.eigh, self.gram_target, "target spectrum")
        target, vectors = above_noise(eigenvalues.flip(-1)), vectors.flip(-1)
        kept = target > 0
        v = vectors[:, kept]  # (D, R')
        image = self.gram_online @ v
        return PairSpectrum(
            spectrum_online=online.sqrt()[:count],
            spectrum_target=target.sqrt()[:count],
            alignment=image_alignment(image, v),
            measured_filter=((image * v).sum(0).clamp_min(0) / target[kept]).sqrt(),
            transfer=(self.cross @ v * v).sum(0) / target[kept],
            rows=count,
        )


def _checked(z: Tensor, width: int, name: str) -> Tensor:
    """The batch in float64."""
    check_batch(z, name)
    if z.ndim != 2 or z.shape[1] != width:
        raise UserError(f"{name} wants a batch (N, {width}), got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise UserError(f"{name}: {int((~z.isfinite()).sum())} of {z.numel()} values are not finite")
    return z.detach().double()


def _check_any(rows: Tensor) -> None:
    if not rows:
        raise UserError("no batch was added yet")
