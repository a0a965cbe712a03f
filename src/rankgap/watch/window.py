"""The running sums behind `RankMonitor.compute`: all rows read since the last reset, at any width.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.spectra.float64 import float64_device
from rankgap.spectra.pair import PairSpectrum
from rankgap.spectra.processes import world_device, world_values
from rankgap.spectra.sketch import sketch_for
from rankgap.spectra.sums import PairSums, RowSums

_Kind = tuple[int, int, bool]  # both widths, and whether rows pair


class Window:
    """Sums over the rows of both branches; with products of the two where rows pair and the widths agree.

    The sums are float64 D x D matrices, three where rows pair and two otherwise: 400 MB at D = 4,096, and 800 MB
    in all while their record is computed. Wider outputs are sketched (`spectra.sketch`), so that their sums take
    100 MB at any width, and the record 300 MB in all. Their ranks are estimates, which the record says.

    If the widths change, or whether rows pair, the window begins again with the new rows.
    """

    def __init__(self) -> None:
        self._kind: _Kind | None = None
        self._sums: PairSums | tuple[RowSums, RowSums] | None = None

    @property
    def rows(self) -> int:
        """The number of rows of each branch that this process has added."""
        sums = self._sums[0] if isinstance(self._sums, tuple) else self._sums
        return 0 if sums is None else int(sums.rows)

    def add(self, online: Tensor, target: Tensor, *, paired: bool) -> None:
        """Add the rows of a reading.

        Args:
            online: P (N, D), any float dtype.
            target: T (N, D').
            paired: whether row i of both comes from the same image.

        Raises:
            UserError: a value is not finite.
        """
        kind = online.shape[1], target.shape[1], paired and online.shape[1] == target.shape[1]
        if kind != self._kind:
            self._begin(kind, float64_device(online))
        if isinstance(self._sums, PairSums):
            self._sums.add(online, target)
        elif self._sums is not None:
            self._sums[0].add(online, "online")
            self._sums[1].add(target, "target")

    def _begin(self, kind: _Kind, device: torch.device) -> None:
        """Begin with no rows of a kind."""
        self._kind, self._sums = kind, None  # frees the old sums before the new ones are made
        *widths, paired = kind
        if paired:
            self._sums = PairSums.zeros(widths[0], device, sketch_for(widths[0], device))
        else:
            online, target = (RowSums.zeros(width, device, sketch_for(width, device)) for width in widths)
            self._sums = online, target

    def clear(self) -> None:
        """Start again with no rows."""
        if self._sums is not None:
            for sums in self._sums if isinstance(self._sums, tuple) else (self._sums,):
                sums.clear()

    def spectrum(self, step: int) -> PairSpectrum:
        """The record of all rows of all processes, which must all call this.

        Args:
            step: the training step that the record carries.

        Raises:
            UserError: no rows have been added, the processes' rows have different widths, or a branch is all zero.
        """
        kinds = {kind for kind in world_values(self._kind) if kind is not None}
        if len(kinds) > 1:
            raise UserError(f"the processes have read outputs of different widths: {sorted(kinds)}")
        if self._sums is None and kinds:  # no outputs of this process were finite
            self._begin(kinds.pop(), world_device())
        if self._sums is None:
            raise UserError("no rows have been added yet")
        if isinstance(self._sums, PairSums):
            pair = self._sums.over_processes().spectrum()
        else:
            pair = _ranks_only(*(sums.over_processes() for sums in self._sums))
        spectra: dict[Side, Tensor] = {"online": pair.spectrum_online, "target": pair.spectrum_target}
        for side, s in spectra.items():
            if not s[0] > 0:
                raise UserError(f"the {side} outputs are all zero, so no rank is defined")
        return dataclasses.replace(pair, step=step)


def _ranks_only(online: RowSums, target: RowSums) -> PairSpectrum:
    """The record of rows that do not pair."""
    s_online, s_target = (sums.spectrum("running spectra", center=False) for sums in (online, target))
    none = s_online.new_empty(0)
    return PairSpectrum(
        spectrum_online=s_online,
        spectrum_target=s_target,
        eigenspace_alignment=none,
        measured_filter=none,
        transfer=none,
        rows=int(online.rows),
        sketch_online=online.sketch.size if online.sketch else None,
        sketch_target=target.sketch.size if target.sketch else None,
    )
