"""The monitor as a callback of Hugging Face's `Trainer` (needs transformers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankgap.diagnosis import RANKS, Action, Diagnosis, Doctor, act, check_action
from rankgap.monitor import RankMonitor


class RankTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Watches two modules of a model with a `RankMonitor`, logs their ranks, and acts on a collapse.

    Every `every` steps `erank_online`, `erank_target` and `rank_difference` are added to the trainer's
    `state.log_history`, which is saved with its checkpoints.

    Args:
        online: dotted name of the module whose output is P.
        target: dotted name of the module whose output is T.
        every: steps between two readings; a step is one backward pass.
        stacked: views that one output holds.
        doctor: thresholds of the diagnosis.
        on_alarm: what to do when a new diagnosis is not healthy: "warn", "stop" (warn and end training), or a
            function that is called with it.

    Raises:
        UserError: an unknown action; at the start of training, a module that does not exist.
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
        self.every, self.stacked, self.doctor = every, stacked, doctor
        self.online, self.target, self.on_alarm = online, target, on_alarm
        self.monitor: RankMonitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Hook the modules."""
        self.monitor = RankMonitor(
            model, self.online, self.target, every=self.every, stacked=self.stacked, doctor=self.doctor
        ).__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log a new reading, and act on a new diagnosis."""
        assert self.monitor is not None
        reading, alarm = self.monitor.news()
        if reading is not None:
            state.log_history.append(
                {name: getattr(reading, name) for name in RANKS} | {"step": state.global_step}
            )
        if alarm is not None and act(self.on_alarm, alarm):
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remove the hooks."""
        if self.monitor is not None:
            self.monitor.__exit__(None, None, None)
