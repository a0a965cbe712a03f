"""Gram matrices of more rows than fit in memory, summed over batches and processes.

Sums are float64 and (D, D), whatever the number of rows: 32 MiB each at D = 2048. A float32 covariance would lose
all singular values below 3e-4 s_1. In float64 those above 6e-8 s_1 are kept, and over six decades each is accurate
to 1e-3 (relative to an SVD in float64; a test checks this at D = 2048).

Sums over a sketch of the columns (`spectra.sketch`) are (m, m) at any D. Their effective rank is an estimate.

Shapes: N rows so far, D columns, m sketch columns, R = min(N, D).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.float64 import double
from rankgap.spectra.gram import RESOLUTION, check_batch, check_finite, gram_singular_values
from rankgap.spectra.pair import PairGrams, PairSpectrum, spectrum_of_grams
from rankgap.spectra.processes import is_distributed, world_sum
from rankgap.spectra.sketch import Sketch, with_energy

_ROWS = 512  # rows of a batch that are added at a time, so that a batch of many tokens needs little memory


class _Sums:
    """What sums of any kind do. Their fields are tensors, but for the sketch."""

    __slots__ = ()
    rows: Tensor
    sketch: Sketch | None

    def clear(self) -> None:
        """Start again with no rows."""
        for x in self._tensors().values():
            x.zero_()

    def over_processes(self) -> Self:
        """The sums over the processes of a distributed run, which must all call this; its own sums are kept."""
        if not is_distributed():
            return self
        joint: dict[str, Any] = {name: world_sum(x.clone()) for name, x in self._tensors().items()}
        return dataclasses.replace(self, **joint)  # type: ignore[type-var]

    def _tensors(self) -> dict[str, Tensor]:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if name != "sketch"}

    def _count(self) -> int:
        if not self.rows:
            raise UserError("no batch has been added yet")
        return int(self.rows)


@dataclass(frozen=True, slots=True)
class RowSums(_Sums):
    """Sums over the rows of one output; the tensors are updated in place.

    Args:
        gram: sum of z^T z (D, D), or of the sketched rows (m, m).
        total: sum of z (D,), or of the sketched rows (m,).
        energy: sum of all squared values before a sketch, 0-d.
        rows: number of rows, 0-d.
        sketch: the sketch of columns that rows go through; None if they are added as they are.
    """

    gram: Tensor
    total: Tensor
    energy: Tensor
    rows: Tensor
    sketch: Sketch | None = None

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None, sketch: Sketch | None = None) -> Self:
        """The sums over no rows, for D columns, on a device with float64 (`float64_device`)."""
        width = sketch.size.columns if sketch else width
        sizes = ((width, width), (width,), ())
        gram, total, energy = (torch.zeros(size, dtype=torch.float64, device=device) for size in sizes)
        return cls(gram, total, energy, torch.tensor(0, device=device), sketch)

    @torch.no_grad()
    def add(self, z: Tensor, name: str) -> None:
        """Add a batch (N, D), any float dtype; an error message begins with `name`.

        Raises:
            UserError: the batch has another shape, or values that are not finite.
        """
        z = _checked(z, self.sketch.size.width if self.sketch else len(self.gram), name)
        for rows in z.split(_ROWS):
            x, energy = _added(rows, self.sketch)
            self.gram.addmm_(x.mT, x)
            self.total.add_(x.sum(0))
            self.energy.add_(energy)
        self.rows.add_(len(z))

    def spectrum(self, name: str, *, center: bool) -> Tensor:
        """Singular values of all rows (R,), descending; of the centred rows if `center` is set.

        Raises:
            UserError: no row has been added.
        """
        count = self._count()
        gram = self.gram - torch.outer(self.total, self.total) / count if center else self.gram
        s = gram_singular_values(gram, name)[:count]
        return with_energy(s, self.energy) if self.sketch and not center else s


@dataclass(frozen=True, slots=True)
class PairSums(_Sums):
    """Sums over the paired rows of two outputs; the tensors are updated in place.

    Args:
        online: sum of p^T p (D, D), or of the sketched rows (m, m).
        target: sum of t^T t, of the same size.
        cross: sum of p^T t, of the same size.
        energy: sums of all squared values of p and of t before a sketch (2,).
        rows: number of rows, 0-d.
        sketch: the sketch of columns that both outputs' rows go through; None if they are added as they are.
    """

    online: Tensor
    target: Tensor
    cross: Tensor
    energy: Tensor
    rows: Tensor
    sketch: Sketch | None = None

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None, sketch: Sketch | None = None) -> Self:
        """The sums over no rows, for D columns, on a device with float64 (`float64_device`)."""
        width = sketch.size.columns if sketch else width
        sizes = (*[(width, width)] * 3, (2,))
        online, target, cross, energy = (torch.zeros(size, dtype=torch.float64, device=device) for size in sizes)
        return cls(online, target, cross, energy, torch.tensor(0, device=device), sketch)

    @property
    def width(self) -> int:
        """The number of columns D."""
        return self.sketch.size.width if self.sketch else len(self.cross)

    @torch.no_grad()
    def add(self, online: Tensor, target: Tensor) -> None:
        """Add P (N, D) and T (N, D): row i of both comes from the same image.

        Raises:
            UserError: the batches have other shapes, or values that are not finite.
        """
        online, target = _checked(online, self.width, "online"), _checked(target, self.width, "target")
        if len(online) != len(target):
            raise UserError(
                f"online has {len(online)} rows and target {len(target)}, but they are compared row by row"
            )
        for rows in zip(online.split(_ROWS), target.split(_ROWS), strict=True):
            (p, of_online), (t, of_target) = (_added(z, self.sketch) for z in rows)
            self.online.addmm_(p.mT, p)
            self.target.addmm_(t.mT, t)
            self.cross.addmm_(p.mT, t)
            self.energy.add_(torch.stack([of_online, of_target]))
        self.rows.add_(len(online))

    def spectrum(self) -> PairSpectrum:
        """The record of all rows.

        Raises:
            UserError: no row has been added.
        """
        grams = PairGrams(self.online, self.target, self.cross, self._count(), between_rows=False)
        pair = spectrum_of_grams(grams, RESOLUTION)
        if self.sketch is None:
            return pair
        return dataclasses.replace(
            pair,
            spectrum_online=with_energy(pair.spectrum_online, self.energy[0]),
            spectrum_target=with_energy(pair.spectrum_target, self.energy[1]),
            sketch_online=self.sketch.size,
            sketch_target=self.sketch.size,
        )


def _checked(z: Tensor, width: int, name: str) -> Tensor:
    """The batch, without its gradient."""
    check_batch(z, name)
    if z.ndim != 2 or z.shape[1] != width:
        raise UserError(f"{name} expects a batch (N, {width}), got {tuple(z.shape)}")
    check_finite(z, name)
    return z.detach()


def _added(z: Tensor, sketch: Sketch | None) -> tuple[Tensor, Tensor]:
    """The rows that are added up, sketched or as they are, and the energy of `z`; float64."""
    if sketch:
        return sketch(z)
    z = double(z)
    return z, torch.linalg.vector_norm(z).square()
