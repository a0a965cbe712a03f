"""A run's progress in a terminal or a notebook, or as plain lines in a file or a pipe."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankgap.notebook import rank_curves, summary
from rankgap.run.cost import cheaper
from rankgap.run.folder import RunFolder
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Plan
from rankgap.run.processes import is_main_process
from rankgap.show.frozen_start import start_in_words
from rankgap.show.pace import Pace, duration, measured, status_line, time_left
from rankgap.show.terminal import announce, console, say

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

HOUR = 3600.0
_SOON = 3.0  # seconds of training before the total time is estimated
_WARM_UP = 10.0  # seconds; a first step that takes longer is not mainly warm-up, unless the encoder is compiled
_LINES = 100  # roughly the most that a run prints, unless 30 s pass between two
_SILENCE = 30.0  # seconds
_REFRESH = 0.5  # seconds between two states that a notebook shows
_LEAST_BAR = 8  # columns
_STARVED = 0.75  # share of a step's time; a thread with a core to itself computes nearly all the time


class Progress(L.Callback):
    """Shows a run: progress, time left, speed, loss and both ranks, and once an estimate of the total time.

    A terminal shows two lines that are kept up to date, and a notebook a bar with the curve of both ranks, for
    which it needs no widgets. A file or a pipe gets a plain line at the end of each epoch (every N-th epoch if
    there are more than a hundred), and after 30 seconds without one. Alarms are printed immediately.

    Args:
        name: the run's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pace = Pace()
        self.plan: Plan | None = None
        self._live: Live | None = None
        self._cell: DisplayHandle | None = None  # in the output of a notebook's cell
        self._began = self._said = 0.0
        self._start = (0.0, 0.0)  # start of a step: time, and CPU time of this thread
        self._wall = self._cpu = 0.0  # over all steps except the warm-up

    def announce(self, plan: Plan) -> None:
        """Print the choices and the reasons, and keep the plan, from which the run's time is estimated later."""
        announce(plan)
        self.plan = plan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the step that the run has reached."""
        assert isinstance(pl_module, SelfSupervised)
        self.module, self.first = pl_module, pl_module.step
        self._began = self._said = time.perf_counter()
        self._finished: float | None = None
        if not is_main_process():
            return
        if self.plan is not None and self.plan.config.init is not None:
            start = start_in_words(RunFolder(self.plan.config.path).start())
            say("  ", ("frozen start:", "dim"), f" {start}")
        if console.is_terminal:
            self._live = Live(get_renderable=self.view, console=console, refresh_per_second=4)
            self._live.start()
        elif console.is_jupyter:
            from IPython.display import display

            self._cell = display(self, display_id=True)
        elif self.plan is None:
            say((self.name, "bold"))

    def on_train_batch_start(self, *_: Any) -> None:
        """Record when a step begins."""
        self._start = time.perf_counter(), time.thread_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Show the newest reading."""
        if not self.module.between_steps:
            return
        now, cpu = time.perf_counter(), time.thread_time()
        is_first = self.module.step == self.first + 1
        is_warm_up = is_first and (
            now - self._began < _WARM_UP or (self.plan is not None and self.plan.config.compile)
        )
        if is_first and not is_warm_up:
            self.pace.mark(self._began, self.first)
        self.pace.mark(now, self.module.step)
        if not is_warm_up:
            self._wall, self._cpu = self._wall + now - self._start[0], self._cpu + cpu - self._start[1]
        if not is_main_process():
            return
        if self.plan is not None and now - self._began > _SOON and self.speed is not None:
            self._estimate(self.plan, self.speed)
            self.plan = None
        if self._cell is not None and now - self._said >= _REFRESH:
            self._cell.update(self)
            self._said = now
        if not (self._live or self._cell) and (self._ends_a_line(self.module) or now - self._said >= _SILENCE):
            say(status_line(self.module.step, self.module.last_reading, self.module.work, self.speed), wrap=False)
            self._said = now
        if alarm := self.module.monitor.news():
            say(("alarm:", "yellow"), f" {self.name}: {alarm}")

    @property
    def speed(self) -> float | None:
        """Images per second; None if not known yet."""
        steps = self.pace.steps_per_second
        return None if steps is None else steps * self.module.work.images_per_step

    def _ends_a_line(self, module: SelfSupervised) -> bool:
        epoch, rest = divmod(module.step, module.work.steps_per_epoch)
        return not rest and (epoch % math.ceil(module.work.epochs / _LINES) == 0 or epoch == module.work.epochs)

    def _estimate(self, plan: Plan, speed: float) -> None:
        """Print how long the run will take, what would shorten it, and whether its threads wait for cores."""
        work, step = plan.work, self.module.step
        left = time_left(work, step, speed) or 0.0
        whole = time.perf_counter() - self._began + left
        epochs = work.epochs - work.clock(self.first).epoch
        if left > _SILENCE:  # a run that is nearly over needs no estimate
            rate = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
            took = f"{epochs:.4g} epochs will take about {duration(whole)}"
            say("  ", ("estimate:", "dim"), f" about {rate} images/s: {took}")
        if plan.device.type != "cpu":
            return
        if whole > HOUR and (options := cheaper(plan, whole, HOUR)):
            shorter = ", ".join(f"about {duration(each)} with {flags}" for flags, each in options.items())
            say("  ", ("estimate:", "yellow"), f" that is long for a CPU; {shorter}")
        threads, share = plan.config.threads or 1, self._cpu / self._wall if self._wall else 1.0
        if threads > 1 and share < _STARVED:
            say(
                "  ",
                ("threads:", "yellow"),
                f" the {threads} threads wait for cores that other processes use (a step computes for {share:.0%} "
                "of its time). --threads 1 is probably faster: press Ctrl-C, then add --resume --threads 1",
            )

    def view(self) -> Group:
        """The lines that the terminal shows. What does not fit is left out, except the time left."""
        parts = measured(self.module.last_reading, self.speed)
        return progress_lines(
            self.name, self.module.step, self.module.work.steps, self._ending, parts, console.width
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        step, steps, history = self.module.step, self.module.work.steps, self.module.monitor.history
        facts = {
            "steps": ", ".join(filter(None, [f"{step:,} of {steps:,}", self._ending])),
            "reading": ", ".join(measured(self.module.last_reading, self.speed)),
        }
        return summary(self.name, facts, rank_curves(history), done=step / steps)

    @property
    def _ending(self) -> str:
        """The time left, or that the run took; empty while it is not known."""
        if self._finished is not None:
            return f"in {duration(self._finished)}"
        left = time_left(self.module.work, self.module.step, self.speed)
        return "" if left is None else f"{duration(left)} left"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the last state."""
        self._finished = time.perf_counter() - self._began
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the last state as it is."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._cell is not None:
            self._cell.update(self)

    def give_way(self, results: object) -> None:
        """Show the results in a notebook, in place of the progress."""
        if self._cell is not None:
            self._cell.update(results)


def progress_lines(name: str, done: int, steps: int, ending: str, parts: list[str], width: int) -> Group:
    """A run's progress in two lines that fit a terminal.

    Args:
        name: the run's name.
        done: steps done.
        steps: steps of the whole run.
        ending: the time left.
        parts: the parts of the second line, the most important first.
        width: columns of the terminal.
    """
    count = f"{done:,}/{steps:,}"
    room = width - len(ending) - 1
    first = Table.grid(padding=(0, 1))
    cells: list[Text | ProgressBar] = []
    if len(count) < room:
        cells, room = [Text(count)], room - len(count) - 1
    if len(name) <= room:
        cells, room = [Text(name), *cells], room - len(name) - 1
    if room - 1 >= _LEAST_BAR:
        cells.insert(-1, ProgressBar(total=steps, completed=done, width=room - 1))
    first.add_row(*cells, Text(ending))
    shown = ""
    for part in parts:
        if len(longer := f"{shown}  {part}".strip()) <= width:
            shown = longer
    return Group(first, Text(shown, style="dim"))
