"""A progress bar in the terminal."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rankgap.run.module import SelfSupervised
from rankgap.run.processes import is_main_process
from rankgap.show.terminal import console, say


class Progress(L.Callback):
    """A progress bar for a run, with its loss and both ranks. A new alarm is printed above it.

    Args:
        name: the run's name.
    """

    def __init__(self, name: str) -> None:
        self.name, self.known = name, "healthy"
        self.bar = Bar(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[reading]}"),
            console=console,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step the run has reached."""
        assert isinstance(pl_module, SelfSupervised)
        self.task = self.bar.add_task(self.name, total=pl_module.work.steps, completed=pl_module.step, reading="")
        if is_main_process():
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar, and show the newest reading."""
        assert isinstance(pl_module, SelfSupervised)
        row = pl_module.last_reading
        reading = (
            f"loss {row['loss']:.3f}  erank {row['erank_online']:.1f} -> {row['erank_target']:.1f}" if row else ""
        )
        self.bar.update(self.task, completed=pl_module.step, reading=reading)
        if (diagnosis := pl_module.monitor.diagnosis).kind != self.known:
            self.known = diagnosis.kind
            if diagnosis and is_main_process():
                say(("alarm:", "yellow"), f" {self.name}: {diagnosis}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self.bar.stop()
