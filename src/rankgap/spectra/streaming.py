"""`spectra.sums` as torchmetrics metrics, summed over batches and over the processes of a distributed run.

Shapes: N rows so far, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from torch import Tensor
from torchmetrics import Metric

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import Convention, effective_rank_of
from rankgap.spectra.float64 import KeepsFloat64
from rankgap.spectra.pair import PairSpectrum
from rankgap.spectra.sketch import sketch_for
from rankgap.spectra.sums import PairSums, RowSums


class EffectiveRank(KeepsFloat64, Metric):
    """Effective rank of all rows seen, as `spectra.effective_rank` computes it for one batch.

    The sum is exact at any width: a float64 D x D matrix.

    Args:
        width: number of columns D.
        of: "correlation" or "features", as in `effective_rank`.
        center: subtract the mean row.

    Example:
        >>> import torch
        >>> rank = EffectiveRank(5)
        >>> for row in torch.eye(5):
        ...     rank.update(row[None])
        >>> round(float(rank.compute()), 6)
        5.0
    """

    full_state_update = False
    gram: Tensor
    total: Tensor
    energy: Tensor
    rows: Tensor

    def __init__(self, width: int, *, of: Convention = "correlation", center: bool = False) -> None:
        super().__init__()
        self.width, self.of, self.center = width, of, center
        _add_states(self, RowSums.zeros(width))

    def update(self, z: Tensor) -> None:
        """Add a batch (N, D), any float dtype.

        Raises:
            UserError: the batch has another shape, or values that are not finite.
        """
        self._sums.add(z, "EffectiveRank")

    def spectrum(self) -> Tensor:
        """Singular values of all rows (R,), float64, descending."""
        return self._sums.spectrum("EffectiveRank", center=self.center)

    def compute(self) -> Tensor:
        """The effective rank, 0-d, float64.

        Raises:
            UserError: no row has been added, or all values are zero.
        """
        s = self.spectrum()
        if not s[0] > 0:
            raise UserError("EffectiveRank: all values are zero, so no rank is defined")
        return effective_rank_of(s, self.of)

    @property
    def _sums(self) -> RowSums:
        return RowSums(self.gram, self.total, self.energy, self.rows)


class PairSpectra(KeepsFloat64, Metric):
    """The `PairSpectrum` of paired outputs, over all rows seen; above 4,096 columns those of a sketch.

    Args:
        width: number of columns D of both outputs.
    """

    full_state_update = False
    online: Tensor
    target: Tensor
    cross: Tensor
    energy: Tensor
    rows: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self._sketch = width, sketch_for(width)
        _add_states(self, PairSums.zeros(width, sketch=self._sketch))

    def update(self, online: Tensor, target: Tensor) -> None:
        """Add P (N, D) and T (N, D): row i of both comes from the same image.

        Raises:
            UserError: the batches have other shapes, or values that are not finite.
        """
        self._sums.add(online, target)

    def compute(self) -> PairSpectrum:
        """The record of all rows of all processes.

        Raises:
            UserError: no row has been added.
        """
        return self._sums.spectrum()

    def _wrap_compute(self, compute: Callable[[], PairSpectrum]) -> Callable[[], PairSpectrum]:
        # torchmetrics would squeeze columns of one number, and it refuses frozen dataclasses: wrap the record.
        sealed = super()._wrap_compute(lambda: _Sealed(compute()))
        return lambda: sealed().record

    @property
    def _sums(self) -> PairSums:
        return PairSums(self.online, self.target, self.cross, self.energy, self.rows, self._sketch)


class _Sealed:
    """A record that `apply_to_collection` does not look into."""

    def __init__(self, record: PairSpectrum) -> None:
        self.record = record


def _add_states(metric: Metric, sums: RowSums | PairSums) -> None:
    for field in fields(sums):
        if isinstance(value := getattr(sums, field.name), Tensor):
            metric.add_state(field.name, value, dist_reduce_fx="sum")
