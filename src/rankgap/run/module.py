"""Training by Lightning: optimiser, schedules, teacher, and the ranks of both branches along the way."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rankgap.data import Batch
from rankgap.errors import NonFiniteError
from rankgap.model.branches import DualBranch, Outputs
from rankgap.model.schedule import Clock
from rankgap.run.optimizer import build_optimizer, learning_rate
from rankgap.run.presets import Work
from rankgap.run.recipes import Optimizer
from rankgap.views.random_views import Views
from rankgap.watch.doctor import Diagnosis, Doctor
from rankgap.watch.reading import read


class SelfSupervised(L.LightningModule):
    """Trains a `DualBranch` on uint8 images.

    Every schedule and every random view is a function of `step` and `seed`, so that a resumed run is the run
    that was not interrupted.

    Args:
        model: the branch model.
        views: makes the views of a batch on the model's device.
        optimizer: the recipe's.
        work: the size of the run.
        seed: of the views.
        rank_every: steps between two readings of the ranks.

    Attributes:
        step: optimiser steps done.
        outputs: what both branches gave, after a step whose ranks were read; None after any other.
        last_reading: the newest row of the metrics.
        diagnosis: of the newest readings.
    """

    first_bad: Tensor

    def __init__(
        self,
        model: DualBranch,
        views: Views,
        optimizer: Optimizer,
        work: Work,
        *,
        seed: int = 0,
        rank_every: int = 10,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.views = views
        self.optimizer, self.work, self.seed, self.rank_every = optimizer, work, seed, rank_every
        self.step = 0
        self.register_buffer("first_bad", torch.tensor(-1), persistent=False)
        self.last_reading: dict[str, float] = {}
        self.doctor, self.diagnosis = Doctor(), Diagnosis("healthy", 0)
        self.outputs: Outputs | None = None
        self._generator: torch.Generator | None = None

    @property
    def clock(self) -> Clock:
        """The time of training."""
        return Clock(step=self.step, steps=self.work.steps, steps_per_epoch=self.work.steps_per_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser; its rate is set each step from the clock."""
        return build_optimizer(self.model, self.optimizer)

    def on_fit_start(self) -> None:
        """Warn of what looks like a larger batch and is none."""
        if (passes := self.trainer.accumulate_grad_batches) > 1:
            warnings.warn(
                f"accumulating {passes} gradients is not a batch {passes} times as large: spectra, codes, centres "
                f"and batch norms still see {self.work.batch_size} images",
                stacklevel=1,
            )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Views, both branches, the loss."""
        clock = self.clock
        self.model.prepare(clock)
        peak = self.optimizer.lr * self.work.batch_size / 256
        rate = learning_rate(self.optimizer, clock, self.work.batch_size)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = peak if group["constant"] else rate
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        self._generator.manual_seed((self.seed * 1_000_003 + self.step) * 4099 + self.global_rank)
        outputs: Outputs = self.model(self.views(batch.images, batch.sizes, self._generator))
        self.outputs = outputs if self.reads_ranks else None
        bad = (self.first_bad < 0) & ~torch.isfinite(outputs.loss.detach())
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        return outputs.loss

    @property
    def reads_ranks(self) -> bool:
        """Whether this step's ranks are read: every `rank_every` steps, and at the last."""
        return self.step % self.rank_every == 0 or self.step == self.work.steps - 1

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser's step, then what follows one: move the teacher, read the ranks where due, go on."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_teacher(self.clock)
        if self.outputs is not None:
            self.check_finite()
            # Online view 1 against target view 2.
            reading = read(self.outputs.online[0], self.outputs.target[1], self.step)
            self.diagnosis = self.doctor(reading)
            row = (
                {"epoch": self.clock.epoch, "loss": float(self.outputs.loss.detach())}
                | reading.numbers()
                | self._rates()
            )
            self.last_reading = row
            for logger in self.trainer.loggers:
                logger.log_metrics(row, step=self.step)
        self.step += 1

    def _rates(self) -> dict[str, float]:
        return {
            "lr": learning_rate(self.optimizer, self.clock, self.work.batch_size),
            "momentum": self.model.momentum_at(self.clock),
        }

    def check_finite(self, *, weights: bool = False) -> None:
        """Stop where a loss was not finite, or where the weights are not.

        Args:
            weights: look at the weights too: a finite loss may have a gradient that is not.

        Raises:
            NonFiniteError: names the first step at which it happened.
        """
        if (step := int(self.first_bad)) >= 0:
            raise NonFiniteError(f"the loss is not finite at step {step}")
        if weights:
            norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
            if not torch.stack(norms).isfinite().all():
                raise NonFiniteError("the weights are not finite")
