"""Resuming a run, which is read and checked completely before anything in its folder changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from rankgap.errors import UserError
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.config import TrainConfig
from rankgap.run.files import check_writable
from rankgap.run.flags import flag
from rankgap.run.folder import RunFolder
from rankgap.run.history import History
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Plan
from rankgap.run.saved import SavedRun
from rankgap.watch.reading import readings

# Fields that may change when a run is resumed. Another number of epochs extends it.
_FREE = {
    "out",
    "resume",
    "overwrite",
    "epochs",
    "data",
    "workers",
    "accelerator",
    "protocol",
    "eval",
    "threads",
    "imports",
    "loggers",
    "keep_every",
    "compile",
    "grad_checkpointing",
}


def resumed(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration with which to resume a run: the saved one, with the user's changes.

    Args:
        path: the run folder.
        given: fields that the user sets. Only fields that do not affect the numbers may differ from the saved run,
            and `epochs`, which changes the length of the run.

    Raises:
        UserError: there is no run, or a field had another value when the run was started.
    """
    saved = RunFolder(path).saved().run
    _check_unchanged(saved, given, path)
    return replace(saved, **dict(given) | {"out": str(path), "resume": True})


def _check_unchanged(saved: TrainConfig, given: Mapping[str, Any], path: Path) -> None:
    for name, value in given.items():
        if name not in _FREE and value != (old := getattr(saved, name)):
            before = f"with {flag(name)} {old}, not {value}" if old or old == 0 else f"without {flag(name)}"
            raise UserError(f"{path} was started {before}: leave it out to resume")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BegunRun:
    """A run to resume, as stored in its folder.

    Args:
        folder: its folder.
        saved: its configuration.
        state: its last checkpoint.
        history: its readings and spectra up to the checkpoint.
    """

    folder: RunFolder
    saved: SavedRun
    state: Checkpoint
    history: History

    @classmethod
    def read(cls, config: TrainConfig) -> Self:
        """Read the run that a configuration resumes.

        Raises:
            UserError: there is no run, one of its files is damaged, a field has another value than when the run
                was started, or its folder cannot be written to.
        """
        folder = RunFolder(config.path)
        saved = folder.saved()
        _check_unchanged(saved.run, {f.name: getattr(config, f.name) for f in fields(config)}, folder.path)
        state = folder.load_checkpoint()
        history = folder.history(state.step)
        check_writable(folder.path)
        return cls(folder=folder, saved=saved, state=state, history=history)

    def check_images(self, plan: Plan) -> None:
        """Reject images with other names, which would be shuffled differently.

        Other contents under the same names are accepted: a file may have been repaired.

        Raises:
            UserError: the names of the images are not those that the run was started with.
        """
        then, now = self.saved.data, plan.train.fingerprint
        if then is not None and now is not None and not then.train.same_order(now):
            raise UserError(
                f"{plan.differences[0]}; put them back, or resume with the new images by --data {plan.config.data}"
            )

    def change_of_length(self, plan: Plan) -> tuple[str, ...]:
        """The note on what a new number of epochs or images does to the run; empty if its steps are unchanged.

        Raises:
            UserError: the run has already trained for longer.
        """
        old, new, step = self.saved.work, plan.work, self.state.step
        if step > new.steps:
            if new.images != old.images:
                raise UserError(
                    f"{new.epochs} epochs of {new.images:,} images are {new.steps:,} steps, but the run has taken "
                    f"{step:,} on {old.images:,} images: give more --epochs, or start a new run"
                )
            if new.epochs == old.epochs:
                raise UserError(f"{self.state.path}: its step {step:,} is beyond the run's {new.steps:,} steps")
            done = f"{new.clock(step).epoch:.4g}"
            raise UserError(f"--epochs {new.epochs}: {self.folder.path} has already trained for {done} epochs")
        if new.steps == old.steps:
            return ()
        if new.epochs == old.epochs:
            steps = f"{new.steps:,} steps instead of {old.steps:,}"
            return (f"{new.images:,} images instead of {old.images:,}: {steps}",)
        before, after = (plan.recipe.optimizer.rate(work.clock(step), work.images_per_step) for work in (old, new))
        return (
            f"{new.epochs} epochs instead of {old.epochs}: learning rate and momentum continue on the schedules "
            f"for {new.epochs} epochs, so the rate at epoch {new.clock(step).epoch:.4g} is {after:.2g} instead of "
            f"{before:.2g}; the recipe is still the one for {old.epochs}",
        )

    def restore(self, module: SelfSupervised) -> None:
        """Load weights, step and readings.

        Raises:
            UserError: the checkpoint belongs to another model or optimiser.
        """
        self.state.load_model(module.model)
        # Training builds its own optimiser; this one only checks that the state fits, before a file changes.
        self.state.load_optimizer(module.configure_optimizers())
        module.step = self.state.step
        module.monitor.resume(readings(self.history.metrics))

    def rewind(self, plan: Plan, change: tuple[str, ...]) -> None:
        """Restore the run's folder to the checkpoint, with the plan for the rest of the run."""
        self.folder.write_config(replace(plan.resumed(self.saved), notes=(*self.saved.notes, *change)))
        if change:
            self.folder.write_results(self.folder.start())  # the others are those of the old length
        self.folder.rewind(self.history)
