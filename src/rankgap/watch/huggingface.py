"""The monitor as a callback of Hugging Face's `Trainer` (needs transformers)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankgap.watch.callbacks import Watcher


class RankTrainerCallback(Watcher, TrainerCallback):  # type: ignore[misc]
    """Watches two modules of a model, logs their ranks, and acts on a collapse.

    It takes the arguments of `Watcher` and of `RankMonitor`. At each reading `erank_online`, `erank_target` and
    `rank_difference` are added to the trainer's `state.log_history`, which is saved with its checkpoints.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Hook the modules."""
        self.attach(model)
        self.expect(state.max_steps * args.gradient_accumulation_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log a new reading, and act on a new diagnosis."""
        ranks, ends = self.look()
        if ranks:
            state.log_history.append(ranks | {"step": state.global_step})
        control.should_training_stop = control.should_training_stop or ends
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remove the hooks."""
        self.detach()
