"""RankMonitor: watch any two-branch model, in any loop.

    with RankMonitor(model, online="predictor", target="projector") as monitor:
        for images in loader:
            ...                      # forward, backward, step, as usual
            if alarm := monitor.news():  # each fault once, when it begins
                print(alarm)
    print(monitor.compute())

Shapes: V views, B images, N rows, D columns.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.spectra.float64 import float64_device
from rankgap.spectra.gram import singular_values
from rankgap.spectra.pair import PairSpectrum, Side, pair_spectrum
from rankgap.spectra.sums import PairSums
from rankgap.watch.doctor import Diagnosis, Doctor, Thresholds
from rankgap.watch.hooks import BranchHooks
from rankgap.watch.pairing import BranchOutput, opposite_views, same_view
from rankgap.watch.reading import Reading, read


class RankMonitor:
    """Reads the effective ranks of two branches every few steps, and says whether they collapse.

    With a model, forward hooks on two of its modules collect their outputs. A step ends where gradients first
    reach an online output, so a module may run once per view or once for all views. `opposite_views` then says
    which views are compared. Passes in evaluation mode or without gradient are skipped. Nothing is copied; the
    last batch that was read stays in memory for `batch_spectrum`. Leaving the `with` block removes the hooks.
    Without a model, call `update`.

    Rows add up in float64 (`spectra.sums.PairSums`) until `reset`. Under `torch.distributed` every process must
    call `compute`, which sums over processes. Readings and diagnosis are those of this process's own batches.

    In the loop, `news` returns each fault once, when it begins; `diagnosis` is the current state. Afterwards,
    `print(monitor.compute())` prints a table, `to_csv` and `pandas.DataFrame(monitor.history)` give the readings,
    and `rankgap.plot(monitor)` draws both ranks.

    Args:
        model: the model, wrapped by DDP or not; None to call `update` by hand.
        online: dotted name of the module whose output is P.
        target: dotted name of the module whose output is T.
        every: steps from one reading to the next. A reading costs two D x D x N products and two decompositions of
            the smaller Gram matrix, in float64.
        stacked: number of views in one output, one after the other, for a model that runs all views as one batch.
        thresholds: thresholds of the diagnosis.
        window: whether to keep running sums for `compute`: three float64 D x D matrices.

    Attributes:
        step: number of steps counted so far.
        history: the readings so far (`Reading`, a named tuple), oldest first.
        diagnosis: what is wrong according to the newest readings: `bool(diagnosis)` is False if nothing is.
        doctor: the `Doctor` that makes the diagnosis.
        every: steps from one reading to the next.
        stacked: number of views in one output.
        window: whether running sums are kept for `compute`.

    Raises:
        UserError: the model has no such module (the nearest names are listed).

    Example:
        >>> import torch
        >>> net = nn.ModuleDict({"projector": nn.Linear(8, 4), "predictor": nn.Linear(4, 4)})
        >>> with RankMonitor(net, online="predictor", target="projector", every=1) as monitor:
        ...     for _ in range(3):
        ...         z = [net["projector"](torch.randn(16, 8)) for _ in range(2)]
        ...         p = [net["predictor"](view) for view in z]
        ...         (p[0] * z[1].detach()).mean().backward()
        >>> monitor.compute().rows, len(monitor.history), bool(monitor.diagnosis)
        (48, 3, False)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        online: str = "predictor",
        target: str = "projector",
        *,
        every: int = 10,
        stacked: int = 1,
        thresholds: Thresholds | None = None,
        window: bool = True,
    ) -> None:
        if every < 1 or stacked < 1:
            raise UserError(f"every and stacked must be 1 or more, got {every} and {stacked}")
        self.every, self.stacked, self.window = every, stacked, window
        self.doctor = Doctor(thresholds)
        self.step = 0
        self.history: list[Reading] = []
        self.diagnosis = Diagnosis("healthy", 0)
        self._hooks: BranchHooks | None = None
        if model is not None:
            self._hooks = BranchHooks(
                model,
                {"online": online, "target": target},
                stacked=stacked,
                wanted=lambda: self.step % self.every == 0,
                end_step=self._end_step,
            )
        self._sums: PairSums | None = None
        self._newest: tuple[int, Tensor, Tensor, Tensor] | None = None  # step, P, P of T's view, and T
        self._news: Diagnosis | None = None

    def __enter__(self) -> Self:
        """Hook the modules."""
        if self._hooks is not None:
            self._hooks.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        if self._hooks is not None:
            self._hooks.remove()

    def _end_step(self, online: list[Tensor], target: list[Tensor]) -> None:
        if online:
            self.update(online, target)
        else:
            self.step += 1

    def update(
        self,
        online: BranchOutput,
        target: BranchOutput,
        *,
        step: int | None = None,
        exponent: float | None = None,
    ) -> Diagnosis:
        """Read the outputs of both branches, and count a step.

        Args:
            online: P, all views of the step (V, B, D), of which `opposite_views` are read; or the rows (N, D) to
                be read.
            target: T, the same for the target branch.
            step: the step of the reading; by default the monitor's own count.
            exponent: the exponent that an `auto` filter chose for this step; it is kept with the reading.

        Returns:
            The diagnosis, also kept as `diagnosis`.

        Raises:
            UserError: the rows of the two branches differ in shape.
        """
        p, t = (rows.detach() for rows in opposite_views(online, target))
        reading = read(p, t, self.step if step is None else step)._replace(exponent=exponent)
        self._take(reading)
        if reading.finite:
            self._newest = reading.step, p, same_view(online, target).detach(), t
            if self.window:
                if self._sums is None or self._sums.width != p.shape[1]:
                    self._sums = PairSums.zeros(p.shape[1], float64_device(p))
                self._sums.add(p, t)
        return self.diagnosis

    def resume(self, history: Iterable[Reading]) -> None:
        """Continue from the readings of an interrupted run; `news` does not report them again."""
        for reading in history:
            self._take(reading)
        self._news = None

    def _take(self, reading: Reading) -> None:
        known = self.diagnosis.kind
        self.history.append(reading)
        self.diagnosis = self.doctor(reading)
        self.step = reading.step + 1
        if self.diagnosis and self.diagnosis.kind != known:
            self._news = self.diagnosis

    def news(self) -> Diagnosis | None:
        """The fault that has begun since the last call, or None. Each fault is returned once; see `diagnosis`."""
        news, self._news = self._news, None
        return news

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
        target's view, see `pairing.same_view`.

        Raises:
            UserError: nothing finite has been read yet.
        """
        if self._newest is None:
            raise UserError("no finite outputs have been read yet: train inside the with block, or call update")
        step, p, partner, t = self._newest
        return dataclasses.replace(pair_spectrum(partner, t), spectrum_online=singular_values(p), step=step)

    def compute(self) -> PairSpectrum:
        """The record of all rows read since the last `reset`; its step is that of the newest reading.

        Raises:
            UserError: nothing has been read yet, a branch is all zero, or the monitor keeps no window.
        """
        if not self.window:
            raise UserError("this monitor keeps no sums: call batch_spectrum, or create it with window=True")
        if self._sums is None:
            raise UserError("no step has been read yet: train inside the with block, or call update")
        pair = self._sums.over_processes().spectrum()
        spectra: dict[Side, Tensor] = {"online": pair.spectrum_online, "target": pair.spectrum_target}
        for side, s in spectra.items():
            if not s[0] > 0:
                raise UserError(f"the {side} outputs are all zero, so no rank is defined")
        return dataclasses.replace(pair, step=self.history[-1].step)

    def reset(self) -> None:
        """Begin a new window of rows; readings and diagnosis continue."""
        if self._sums is not None:
            self._sums.clear()
