"""Callbacks that write a run's checkpoints and spectra while it trains."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from rankgap.evaluate import extract_features
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.folder import RunFolder
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Plan
from rankgap.run.processes import is_main_process
from rankgap.run.saved import library_versions
from rankgap.spectra.effective_rank import rankme

SNAPSHOTS = 40  # approximate number per run
SAMPLE = 2048  # images whose features score an epoch, or a run without evaluation


class Checkpoints(L.Callback):
    """Writes `last.ckpt` after each epoch, keeps the checkpoints that were asked for, and times the training.

    Args:
        plan: the run; its configuration says which checkpoints to keep.
        folder: the run folder.
        state: the checkpoint to resume from; None for a new run.
    """

    def __init__(self, plan: Plan, folder: RunFolder, state: Checkpoint | None) -> None:
        config = plan.config
        self.folder, self.keep_every, self.size = folder, config.keep_every, plan.size
        # RankMe of these images' features decides which epoch is best.
        self.sample = plan.train.sample(SAMPLE) if config.save_best else None
        self.seconds = state.seconds if state else 0.0
        self.best = state.best if state else 0.0
        self.version = library_versions()["rankgap"]
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """At the end of an epoch, write `last.ckpt` and any other checkpoint that is due."""
        assert isinstance(pl_module, SelfSupervised)
        epoch, rest = divmod(pl_module.step, pl_module.work.steps_per_epoch)
        if rest or not pl_module.between_steps:
            return
        names = []
        if self.keep_every and epoch % self.keep_every == 0:
            names.append(f"epoch-{epoch:04d}")
        # A barely trained encoder still has the high rank of its random weights.
        late = 2 * pl_module.step >= pl_module.work.steps
        if self.sample is not None and late and self._is_best(pl_module):
            names.append("best")
        self.save(trainer, pl_module, *names)

    def _is_best(self, module: SelfSupervised) -> bool:
        assert self.sample is not None
        features, _ = extract_features(module.model.encoder(), self.sample, size=self.size)
        rank = float(rankme(features)) if features.isfinite().all() and features.any() else 0.0
        better = rank > self.best
        self.best = max(rank, self.best)
        return better

    def elapsed(self) -> float:
        """Seconds of training, including earlier parts of the run."""
        return self.seconds + time.perf_counter() - self._started

    def save(self, trainer: L.Trainer, module: SelfSupervised, *names: str) -> None:
        """Write a checkpoint, also under the given names, unless the weights are not finite."""
        module.check_finite(weights=True)
        if is_main_process():
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            state = Checkpoint(
                rankgap=self.version,
                step=module.step,
                seconds=self.elapsed(),
                best=self.best,
                model=module.model.state_dict(),
                optimizer=trainer.optimizers[0].state_dict(),
                random={"cpu": torch.get_rng_state(), "cuda": cuda},
            )
            self.folder.save_checkpoint(state, *names)


class SpectraFile(L.Callback):
    """Writes both branches' spectra at about forty of the steps that are read in a run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write the spectra of the step that has just ended, if they are due."""
        assert isinstance(pl_module, SelfSupervised)
        monitor, work, step = pl_module.monitor, pl_module.work, pl_module.step - 1
        every = monitor.every * max(work.steps // (SNAPSHOTS * monitor.every), 1)
        due = pl_module.between_steps and (step % every == 0 or step == work.steps - 1)
        if due and is_main_process() and monitor.history and monitor.history[-1].step == step:
            self.folder.add_spectra(monitor.batch_spectrum())


class Restore(L.Callback):
    """Restores a checkpoint's optimiser and random state once the trainer has created the optimiser."""

    def __init__(self, state: Checkpoint) -> None:
        self.state = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore both."""
        self.state.load_optimizer(trainer.optimizers[0])
        self.state.load_random()
