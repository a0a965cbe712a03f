"""The logbook that `RankMonitor` fills: what has been read of both branches, and what it says.

Shapes: V views, N rows, D columns.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from rankgap.errors import UserError, unknown
from rankgap.spectra.gram import singular_values
from rankgap.spectra.pair import PairSpectrum, pair_spectrum
from rankgap.spectra.processes import world_size
from rankgap.watch.doctor import Diagnosis, Doctor, News, Thresholds
from rankgap.watch.history import History
from rankgap.watch.pairing import Pair, PairRule, Views, choose, evenly
from rankgap.watch.reading import Reading, read
from rankgap.watch.verdict import Verdict, judge
from rankgap.watch.window import Window

_PAIRED = "alignment, filter and transfer"  # what only rows that pair have


class _Newest(NamedTuple):
    """The rows of the newest finite reading."""

    step: int
    online: Tensor
    target: Tensor
    within: Tensor | None  # the online rows of the target's own view; None where rows do not pair


class Logbook:
    """Reads the views of one step after another, and answers for all that it has read.

    Args:
        pair: the rule by which views are compared.
        thresholds: thresholds of the diagnosis.
        steps: the length of the run in steps, if known.
        window: whether to keep running sums for `compute`.
        skipped: filled with what is left out of the newest readings, and why.
        why_nothing: returns the most likely reason why no step has been read.

    Raises:
        UserError: there is no such rule.
    """

    def __init__(
        self,
        *,
        pair: PairRule,
        thresholds: Thresholds | None,
        steps: int | None,
        window: bool,
        skipped: dict[str, str],
        why_nothing: Callable[[], str],
    ) -> None:
        if not callable(pair) and pair not in get_args(Pair):
            raise unknown("rule for pairs", str(pair), get_args(Pair))
        self.pair, self.window = pair, window
        self.doctor = Doctor(thresholds, steps)
        self.history = History()
        self.diagnosis = Diagnosis("healthy", 0)
        self._skipped, self._why_nothing = skipped, why_nothing
        self._step = 0  # the next one to read
        self._window = Window()
        self._newest: _Newest | None = None
        self._news: Diagnosis | None = None
        self._is_news = News()

    @property
    def skipped(self) -> dict[str, str]:
        """What was left out, and why."""
        return self._skipped

    @torch.no_grad()
    def _read(self, views: Views, *, ordered: bool, exponent: float | None = None) -> None:
        """Take a reading of a step's views."""
        chosen = choose(views["online"], views["target"], self.pair, ordered=ordered)
        reading = read(chosen.online, chosen.target, self._step)._replace(exponent=exponent)
        if reading.finite and min(reading.rows, chosen.online.shape[-1], chosen.target.shape[-1]) < 2:
            raise UserError(
                "a single row or column has no rank to speak of: use larger batches, or another module"
            )
        self._take(reading)
        if chosen.why:
            self.skipped[_PAIRED] = chosen.why
        else:
            self.skipped.pop(_PAIRED, None)
        if reading.finite:
            p, t = (evenly(z.flatten(0, -2), reading.rows) for z in (chosen.online, chosen.target))
            within = None if chosen.within is None else chosen.within.flatten(0, -2)
            self._newest = _Newest(self._step, p, t, within)
            if self.window:
                self._window.add(p, t, paired=within is not None)

    def _take(self, reading: Reading) -> None:
        self.history.add(reading)
        self.diagnosis = self.doctor(reading)
        if self._is_news(self.diagnosis):
            self._news = self.diagnosis

    def resume(self, history: Iterable[Reading]) -> None:
        """Continue from the readings of an interrupted run; `news` does not report them again."""
        for reading in history:
            self._take(reading)
            self._step = reading.step + 1
        self._news = None

    def news(self) -> Diagnosis | None:
        """The fault that has begun since the last call, or None.

        Each fault is returned once until the run is healthy again; `diagnosis` is the current state.
        """
        news, self._news = self._news, None
        return news

    def verdict(self) -> Verdict:
        """The verdict on the whole run so far: the fate of its dimensions.

        Raises:
            UserError: nothing has been read yet.
        """
        if not self.history:
            raise UserError(self._nothing())
        return judge(self.history, thresholds=self.doctor.thresholds)

    def to_csv(self, path: str | Path) -> None:
        """Write the readings as a CSV table: one row per reading, one column per field of `Reading`.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            with open(path, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerows([Reading._fields, *self.history])
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error

    def batch_spectrum(self) -> PairSpectrum:
        """The record of the rows that were read last, computed on request.

        Its ranks are those of the reading. Filter, transfer and eigenspace alignment are measured within the
        target's view, see `pairing.Chosen`.

        Raises:
            UserError: nothing finite has been read yet, or rows do not pair.
        """
        if self._newest is None:
            raise UserError(self._nothing())
        step, p, t, within = self._newest
        if within is None:
            raise UserError(f"the rows do not pair: {self.skipped[_PAIRED]}")
        return dataclasses.replace(pair_spectrum(within, t), spectrum_online=singular_values(p), step=step)

    def compute(self) -> PairSpectrum:
        """The record of all rows read since the last `reset`; its step is that of the newest reading.

        Where rows do not pair, it has the ranks only. Above 4,096 columns it is an estimate, and says so.

        Raises:
            UserError: nothing has been read yet, a branch is all zero, or the monitor keeps no window.
        """
        if not self.window:
            raise UserError("this monitor keeps no sums: call batch_spectrum, or create it with window=True")
        if not self._window.rows and world_size() == 1:
            raise UserError(self._nothing())
        return self._window.spectrum(self.history[-1].step if self.history else 0)

    def reset(self) -> None:
        """Begin a new window of rows; readings and diagnosis continue."""
        self._window.clear()

    def _nothing(self) -> str:
        if self.history:
            return "no finite outputs have been read yet, or none since the last reset"
        return f"no step has been read yet: {self._why_nothing()}"
