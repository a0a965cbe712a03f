"""Gram matrices of more rows than fit in memory, summed over batches and processes.

Sums are float64 and (D, D), whatever the number of rows: 32 MiB each at D = 2048. A float32 covariance would lose
all singular values below 3e-4 s_1. In float64 those above 6e-8 s_1 are kept, and over six decades each is accurate
to 1e-3 (relative to an SVD in float64; a test checks this at D = 2048).

Shapes: N rows so far, D columns, R = min(N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.float64 import double
from rankgap.spectra.gram import RESOLUTION, check_batch, gram_singular_values
from rankgap.spectra.pair import PairGrams, PairSpectrum, spectrum_of_grams
from rankgap.spectra.processes import is_distributed, world_sum


@dataclass(frozen=True, slots=True)
class RowSums:
    """Sums over the rows of one output; the tensors are updated in place.

    Args:
        gram: sum of z^T z (D, D).
        total: sum of z (D,).
        rows: number of rows, 0-d.
    """

    gram: Tensor
    total: Tensor
    rows: Tensor

    @classmethod
    def zeros(cls, width: int) -> Self:
        """The sums over no rows, for D columns."""
        return cls(_square(width), torch.zeros(width, dtype=torch.float64), torch.tensor(0))

    @torch.no_grad()
    def add(self, z: Tensor, name: str) -> None:
        """Add a batch (N, D), any float dtype; an error message begins with `name`.

        Raises:
            UserError: the batch has another shape, or values that are not finite.
        """
        z = _checked(z, len(self.gram), name)
        self.gram.add_(z.mT @ z)
        self.total.add_(z.sum(0))
        self.rows.add_(len(z))

    def spectrum(self, name: str, *, center: bool) -> Tensor:
        """Singular values of all rows (R,), descending; of the centred rows if `center` is set.

        Raises:
            UserError: no row has been added.
        """
        count = _counted(self.rows)
        gram = self.gram - torch.outer(self.total, self.total) / count if center else self.gram
        return gram_singular_values(gram, name)[:count]


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over the paired rows of two outputs; the tensors are updated in place.

    Args:
        online: sum of p^T p (D, D).
        target: sum of t^T t (D, D).
        cross: sum of p^T t (D, D).
        rows: number of rows, 0-d.
    """

    online: Tensor
    target: Tensor
    cross: Tensor
    rows: Tensor

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None) -> Self:
        """The sums over no rows, for D columns, on a device with float64 (`float64_device`)."""
        online, target, cross = (_square(width, device) for _ in range(3))
        return cls(online, target, cross, torch.tensor(0, device=device))

    @property
    def width(self) -> int:
        """The number of columns D."""
        return len(self.cross)

    @torch.no_grad()
    def add(self, online: Tensor, target: Tensor) -> None:
        """Add P (N, D) and T (N, D): row i of both comes from the same image.

        Raises:
            UserError: the batches have other shapes, or values that are not finite.
        """
        p, t = _checked(online, self.width, "online"), _checked(target, self.width, "target")
        if len(p) != len(t):
            raise UserError(f"online has {len(p)} rows and target {len(t)}, but they are compared row by row")
        self.online.add_(p.mT @ p)
        self.target.add_(t.mT @ t)
        self.cross.add_(p.mT @ t)
        self.rows.add_(len(p))

    def clear(self) -> None:
        """Start again with no rows."""
        for x in (self.online, self.target, self.cross, self.rows):
            x.zero_()

    def over_processes(self) -> PairSums:
        """The sums over the processes of a distributed run, which must all call this; its own sums are kept."""
        if not is_distributed():
            return self
        return PairSums(*(world_sum(x.clone()) for x in (self.online, self.target, self.cross, self.rows)))

    def spectrum(self) -> PairSpectrum:
        """The record of all rows.

        Raises:
            UserError: no row has been added.
        """
        grams = PairGrams(self.online, self.target, self.cross, _counted(self.rows), between_rows=False)
        return spectrum_of_grams(grams, RESOLUTION)


def _square(width: int, device: torch.device | None = None) -> Tensor:
    return torch.zeros(width, width, dtype=torch.float64, device=device)


def _checked(z: Tensor, width: int, name: str) -> Tensor:
    """The batch in float64."""
    check_batch(z, name)
    if z.ndim != 2 or z.shape[1] != width:
        raise UserError(f"{name} expects a batch (N, {width}), got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise UserError(f"{name}: {int((~z.isfinite()).sum())} of {z.numel()} values are not finite")
    return double(z.detach())


def _counted(rows: Tensor) -> int:
    if not rows:
        raise UserError("no batch has been added yet")
    return int(rows)
