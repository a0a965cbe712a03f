"""The running sums of both branches (to be replaced by the work on sketches)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.float64 import float64_device
from rankgap.spectra.pair import PairSpectrum, Side
from rankgap.spectra.sums import PairSums


class Window:
    """Running sums over the readings of a window."""

    def __init__(self) -> None:
        self._sums: PairSums | None = None

    @property
    def rows(self) -> int:
        return 0 if self._sums is None else int(self._sums.rows)

    def add(self, online: Tensor, target: Tensor, *, paired: bool) -> None:
        if not paired:
            return
        if self._sums is None or self._sums.width != online.shape[1]:
            self._sums = PairSums.zeros(online.shape[1], float64_device(online))
        self._sums.add(online, target)

    def clear(self) -> None:
        self._sums = None

    def spectrum(self, step: int) -> PairSpectrum:
        assert self._sums is not None
        pair = self._sums.over_processes().spectrum()
        spectra: dict[Side, Tensor] = {"online": pair.spectrum_online, "target": pair.spectrum_target}
        for side, s in spectra.items():
            if not s[0] > 0:
                raise UserError(f"the {side} outputs are all zero, so no rank is defined")
        return dataclasses.replace(pair, step=step)
