"""RankMonitor: watch any two-branch model, in any loop.

    with RankMonitor(model, online="predictor", target="projector") as monitor:
        for images in loader:
            ...                      # forward, backward, step, as usual
            if alarm := monitor.news():  # each fault once, when it begins
                print(alarm)
    print(monitor.compute())

Shapes: V views, B images, T tokens of an image, N rows, D columns.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from rankgap.errors import UserError, unknown
from rankgap.notebook import rank_curves, summary
from rankgap.spectra.gram import singular_values
from rankgap.spectra.pair import SIDES, PairSpectrum, Side, pair_spectrum
from rankgap.spectra.processes import world_size
from rankgap.watch.branches import Branches, Views
from rankgap.watch.cadence import Cadence, StepCount
from rankgap.watch.doctor import Diagnosis, Doctor, Thresholds
from rankgap.watch.history import History
from rankgap.watch.hooks import MOST_CALLS, Call
from rankgap.watch.outputs import Layout, Then
from rankgap.watch.pairing import Pair, PairRule, choose, evenly
from rankgap.watch.reading import Reading, read
from rankgap.watch.safety import Safety
from rankgap.watch.verdict import Verdict, judge
from rankgap.watch.window import Window


class _Newest(NamedTuple):
    """The rows of the newest finite reading."""

    step: int
    online: Tensor
    target: Tensor
    within: Tensor | None  # the online rows of the target's own view; None where rows do not pair


class RankMonitor:
    """Reads the effective ranks of two branches every few steps, and says whether they collapse.

    With a model, forward hooks on two of its modules collect their outputs: tensors of any width and number, in
    lists, tuples (of which the first tensor counts), dictionaries or dataclasses. A step ends with the backward
    pass that reaches an online output, so a module may run once per view or once for all views. Passes without
    gradient are skipped. Without a model, call `update`. Without a backward pass, call `monitor.step()` at the end
    of each step.

    Both branches' ranks are always read, from the same number of rows. Where the rows pair (`pairing.choose`) and
    widths agree, the ranks are those of the pair, and alignment, filter and transfer are measured too; otherwise
    `skipped` says why not. Rows add up in `compute` until `reset`. Under `torch.distributed` every process must
    call `compute`, which sums over processes. Readings and diagnosis are those of this process's own batches.

    Watching never ends a training. An output that cannot be read is left out, and an error ends the watching,
    each with one warning. Nothing is copied, no random number is drawn, and the last batch that was read stays in
    memory for `batch_spectrum`. Leaving the `with` block removes the hooks.

    In the loop, `news` returns each fault once, when it begins; `diagnosis` is the current state. Afterwards,
    `print(monitor.compute())` prints a table, `print(monitor.verdict())` judges the whole run, `to_csv` and
    `pandas.DataFrame(monitor.history)` give the readings, and `rankgap.plot(monitor)` draws both ranks.

    Args:
        model: the model, wrapped or compiled or not; None to call `update` by hand, or if both modules are given.
        online: the module whose output is P, or its dotted name in the model as you wrote it.
        target: the same for T.
        every: steps from one reading to the next. "auto" reads a run of known length 40 times at least, and
            otherwise keeps readings under 1% of the time, after a second of them at the start.
        steps: the length of the run in steps (backward passes), if known.
        layout: what the dimensions of outputs are: rows "n d", views "v n d" or tokens "b t d". By default two
            dimensions are rows. Three are views in outputs of rankgap's own models and in `update` (up to 16),
            and otherwise tokens, with a warning. More are a map (B, D, H, W), whose positions are tokens.
        select: the key, attribute or index of the tensor in an output that holds several.
        stacked: number of views in one output, one after the other.
        then: a function for each branch (or None), applied to a copy of its output (or of its list of outputs), so
            that what is read is what the loss sees: a softmax, a centring, a mask. The target's is called right
            after the module, when its centre is the one that the loss will use, the online one at the step's end.
        pair: which target view meets an online view: one that is not its own ("opposite"), its own ("same"), or a
            function of both lists of views that returns P and T.
        thresholds: thresholds of the diagnosis.
        window: whether to keep running sums for `compute`.
        strict: raise errors instead of ending the watching with a warning.

    `layout`, `select` and `stacked` hold for both branches, or are pairs (online, target).

    Attributes:
        step: number of steps counted so far; calling it ends a step by hand.
        history: the readings so far (`Reading`, a named tuple), oldest first, thinned evenly beyond 10,000.
        diagnosis: what is wrong according to the newest readings: `bool(diagnosis)` is False if nothing is.
        skipped: what was left out of the newest readings, and why.
        disabled: why watching has ended; empty while it goes on.
        doctor: the `Doctor` that makes the diagnosis.
        cadence: the `Cadence` that chooses the steps to read.
        pair: the rule by which views are compared.
        window: whether running sums are kept for `compute`.
        every: steps from one reading to the next, as things stand.

    Raises:
        UserError: the model has no such module (the nearest names are listed), or an option has a wrong value.

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
        online: str | nn.Module = "predictor",
        target: str | nn.Module = "projector",
        *,
        every: int | Literal["auto"] = "auto",
        steps: int | None = None,
        layout: Layout | tuple[Layout | None, Layout | None] | None = None,
        select: str | int | tuple[str | int | None, str | int | None] | None = None,
        stacked: int | tuple[int, int] = 1,
        then: tuple[Then | None, Then | None] = (None, None),
        pair: PairRule = "opposite",
        thresholds: Thresholds | None = None,
        window: bool = True,
        strict: bool = False,
    ) -> None:
        if not callable(pair) and pair not in get_args(Pair):
            raise unknown("rule for pairs", str(pair), get_args(Pair))
        self.pair, self.window = pair, window
        self.cadence = Cadence(None if every == "auto" else every, steps)
        self.doctor = Doctor(thresholds, steps)
        self.history = History()
        self.diagnosis = Diagnosis("healthy", 0)
        self._safety = Safety(strict=strict)
        self._outputs: dict[Side, deque[Call]] = {side: deque(maxlen=MOST_CALLS) for side in SIDES}  # of this step
        self._branches = Branches(
            model,
            {"online": online, "target": target},
            {"layout": layout, "select": select, "stacked": stacked, "then": then},
            self._outputs,
            safety=self._safety,
            wanted=self._wanted,
            end_step=self._end_step,
        )
        self._step = 0
        self._window = Window()
        self._newest: _Newest | None = None
        self._news: Diagnosis | None = None

    def __enter__(self) -> Self:
        """Hook the modules."""
        self._branches.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks; warn if there was nothing to read."""
        self._branches.leave(nothing=not self.history and kind is None)

    @property
    def step(self) -> StepCount:
        """The number of steps so far; calling it ends a step by hand."""
        return StepCount(self._step, self._end_by_hand)

    @property
    def every(self) -> int:
        """Steps from one reading to the next, as things stand."""
        return self.cadence.every

    @property
    def skipped(self) -> dict[str, str]:
        """What was left out, and why."""
        return self._safety.skipped

    @property
    def disabled(self) -> str:
        """Why watching has ended; empty while it goes on."""
        return self._safety.disabled

    def _end_by_hand(self) -> Diagnosis:
        self._branches.end_by_hand()
        return self.diagnosis

    def _wanted(self) -> bool:
        return self.cadence.due(self._step)

    def _end_step(self, views: Views | None, ordered: bool, seconds: float) -> None:
        if views is not None:
            began = time.perf_counter()
            self._safety.or_skip(lambda: self._read(views, ordered=ordered))
            now = time.perf_counter()
            self.cadence.note(self._step, now, seconds + now - began)
        self._step += 1

    def update(
        self, online: Any, target: Any, *, step: int | None = None, exponent: float | None = None
    ) -> Diagnosis:
        """Read the outputs of both branches, and count a step.

        Args:
            online: what the online module gives in a step: rows (N, D), views (V, B, D) or tokens; or a list or
                tuple of what it gives in several calls, view by view.
            target: the same of the target module.
            step: the step of the reading; by default the monitor's own count, which also replaces a step that is
                not above the newest one.
            exponent: the exponent that an `auto` filter chose for this step; it is kept with the reading.

        Returns:
            The diagnosis, also kept as `diagnosis`.

        Raises:
            UserError: the outputs cannot be read, and the monitor is strict.
        """
        if step is not None and self.history and step <= self.history[-1].step:
            self._safety.tell(
                "steps", f"step {step} comes after step {self._step - 1}: the monitor counts on by itself"
            )
        elif step is not None:
            self._step = step

        def take() -> None:
            views = self._branches.views_of({"online": online, "target": target})
            self._read(views, ordered=True, exponent=exponent)

        if not self.disabled:
            self._branches.guard(lambda: self._safety.or_skip(take))
        self._step += 1
        return self.diagnosis

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
            self.skipped["alignment, filter and transfer"] = chosen.why
        else:
            self.skipped.pop("alignment, filter and transfer", None)
        if reading.finite:
            p, t = (evenly(z.flatten(0, -2), reading.rows) for z in (chosen.online, chosen.target))
            within = None if chosen.within is None else chosen.within.flatten(0, -2)
            self._newest = _Newest(self._step, p, t, within)
            if self.window:
                self._window.add(p, t, paired=within is not None)

    def resume(self, history: Iterable[Reading]) -> None:
        """Continue from the readings of an interrupted run; `news` does not report them again."""
        for reading in history:
            self._take(reading)
            self._step = reading.step + 1
        self._news = None

    def _take(self, reading: Reading) -> None:
        known = self.diagnosis.kind
        self.history.add(reading)
        self.diagnosis = self.doctor(reading)
        if self.diagnosis and self.diagnosis.kind != known:
            self._news = self.diagnosis

    def news(self) -> Diagnosis | None:
        """The fault that has begun since the last call, or None. Each fault is returned once; see `diagnosis`."""
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
            raise UserError(f"the rows do not pair: {self.skipped['alignment, filter and transfer']}")
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

    def _nothing(self) -> str:
        if self.history:
            return "no finite outputs have been read yet, or none since the last reset"
        return f"no step has been read yet: {self._branches.why_nothing()}"

    def _repr_html_(self) -> str:
        """The state, the newest reading and the curve of both ranks, as a notebook shows them."""
        facts = {"watching": f"ended: {self.disabled}" if self.disabled else f"one step in {self.every:,}"}
        if not self.history:
            return summary("RankMonitor", facts | {"readings": f"none yet: {self._branches.why_nothing()}"})
        newest = self.history[-1]
        facts |= {
            "newest reading": f"step {newest.step:,}, of {newest.rows:,} rows",
            "effective rank": f"online {newest.erank_online:.2f}, target {newest.erank_target:.2f}",
            "rank difference": f"{newest.rank_difference:+.2f} (above 0: dimensions grow)",
            "diagnosis": str(self.diagnosis),
            "left out": "\n".join(f"{what}: {why}" for what, why in self.skipped.items()),
        }
        return summary("RankMonitor", facts, rank_curves(self.history))

    def reset(self) -> None:
        """Begin a new window of rows; readings and diagnosis continue."""
        self._window.clear()
