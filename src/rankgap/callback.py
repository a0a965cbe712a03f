"""The monitor as a Lightning callback: two lines in anyone's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from rankgap.diagnosis import RANKS, Action, Diagnosis, Doctor, act, check_action
from rankgap.monitor import RankMonitor


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
        check_action(on_alarm)
        self.online, self.target, self.every, self.stacked = online, target, every, stacked
        self.doctor, self.on_alarm = doctor, on_alarm
        self.monitor: RankMonitor | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hook the modules."""
        self.monitor = RankMonitor(
            pl_module, self.online, self.target, every=self.every, stacked=self.stacked, doctor=self.doctor
        )
        self.monitor.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log a new reading, and act on a new diagnosis."""
        assert self.monitor is not None
        reading, alarm = self.monitor.news()
        if reading is not None:
            for name in RANKS:
                pl_module.log(name, getattr(reading, name))
        if alarm is not None and act(self.on_alarm, alarm):
            trainer.should_stop = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks."""
        self._leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self._leave()

    def _leave(self) -> None:
        if self.monitor is not None:
            self.monitor.__exit__(None, None, None)
