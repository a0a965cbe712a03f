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

import time
from collections import deque
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn

from rankgap.choices import Side
from rankgap.notebook import rank_curves, summary
from rankgap.spectra.pair import SIDES
from rankgap.watch.branches import Branches
from rankgap.watch.cadence import Cadence, StepCount
from rankgap.watch.doctor import Diagnosis, Thresholds
from rankgap.watch.hooks import MOST_CALLS, Call
from rankgap.watch.logbook import Logbook
from rankgap.watch.outputs import Layout, Then
from rankgap.watch.pairing import PairRule, Views
from rankgap.watch.safety import Safety


class RankMonitor(Logbook):
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
        self.cadence = Cadence(None if every == "auto" else every, steps)
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
        super().__init__(
            pair=pair,
            thresholds=thresholds,
            steps=steps,
            window=window,
            skipped=self._safety.skipped,
            why_nothing=self._branches.why_nothing,
        )

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

    def _repr_html_(self) -> str:
        """The state, the newest reading and the curve of both ranks, as a notebook shows them."""
        facts = {"watching": f"ended: {self.disabled}" if self.disabled else f"one step in {self.every:,}"}
        if not self.history:
            return summary("RankMonitor", facts | {"readings": f"none yet: {self._why_nothing()}"})
        newest = self.history[-1]
        facts |= {
            "newest reading": f"step {newest.step:,}, of {newest.rows:,} rows",
            "effective rank": f"online {newest.erank_online:.2f}, target {newest.erank_target:.2f}",
            "rank difference": f"{newest.rank_difference:+.2f} (above 0: dimensions grow)",
            "diagnosis": str(self.diagnosis),
            "left out": "\n".join(f"{what}: {why}" for what, why in self.skipped.items()),
        }
        return summary("RankMonitor", facts, rank_curves(self.history))
