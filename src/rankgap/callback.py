"""The monitor as a Lightning callback: two lines in anyone's training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import lightning as L

from rankgap.diagnosis import Diagnosis, Doctor
from rankgap.errors import unknown
from rankgap.monitor import RankMonitor

Action = Literal["warn", "stop"]


class RankCallback(L.Callback):
    """Watches two modules of a `LightningModule` with a `RankMonitor`, logs their ranks, and acts on a collapse.

    Logged every `every` steps: `erank_online`, `erank_target`, `rank_difference`.

    Args:
        online: dotted name of the module whose output is P.
        target: dotted name of the module whose output is T.
        every: steps between two readings.
        stacked: views that one output holds.
        doctor: thresholds of the diagnosis.
        on_alarm: what to do when a new diagnosis is not healthy: "warn", "stop" (warn and end training), or a
            function that is called with it.

    Raises:
        UserError: an unknown action; at the start of training, a module that does not exist.

    Example:
        >>> callback = RankCallback(online="predictor", target="projector", on_alarm="stop")
        >>> trainer = L.Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        online: str = "predictor",
        target: str = "projector",
        *,
        every: int = 10,
        stacked: int = 1,
        doctor: Doctor | None = None,
        on_alarm: Action | Callable[[Diagnosis], None] = "warn",
    ) -> None:
        if not callable(on_alarm) and on_alarm not in get_args(Action):
            raise unknown("action", on_alarm, get_args(Action))
        self.online, self.target, self.every, self.stacked = online, target, every, stacked
        self.doctor, self.on_alarm = doctor, on_alarm
        self.monitor: RankMonitor | None = None
        self._read = 0
        self._known = "healthy"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hook the modules."""
        self.monitor = RankMonitor(
            pl_module, self.online, self.target, every=self.every, stacked=self.stacked, doctor=self.doctor
        )
        self._read, self._known = 0, "healthy"
        self.monitor.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log a new reading, and act on a new diagnosis."""
        assert self.monitor is not None
        if len(self.monitor.history) == self._read:
            return
        self._read = len(self.monitor.history)
        reading, diagnosis = self.monitor.history[-1], self.monitor.diagnosis
        for name in ("erank_online", "erank_target", "rank_difference"):
            pl_module.log(name, getattr(reading, name))
        if diagnosis and diagnosis.kind != self._known:
            if callable(self.on_alarm):
                self.on_alarm(diagnosis)
            else:
                warnings.warn(str(diagnosis), stacklevel=2)
                trainer.should_stop = trainer.should_stop or self.on_alarm == "stop"
        self._known = diagnosis.kind

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks."""
        self._leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self._leave()

    def _leave(self) -> None:
        if self.monitor is not None:
            self.monitor.__exit__(None, None, None)
