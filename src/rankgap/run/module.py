"""Training with Lightning: a step, its schedules, the teacher, and a reading of both branches along the way."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from rankgap.data import Batch, Crops
from rankgap.errors import NonFiniteError, UserError
from rankgap.evaluate.batches import views_of
from rankgap.filters.spectral import SpectralFilter
from rankgap.model.branches import DualBranch, Outputs
from rankgap.model.schedule import Clock, views_seed
from rankgap.run.optimizer import OptimizerOptions, build_optimizer, ready_gradients, set_rates
from rankgap.run.work import Work
from rankgap.spectra.processes import gather_rows, joint_mean
from rankgap.views import Views
from rankgap.watch.monitor import RankMonitor


class SelfSupervised(L.LightningModule):
    """Trains a `DualBranch` on uint8 images.

    Every schedule and every random view is a function of `step` and `seed`, so that a resumed run equals
    an uninterrupted one.

    Args:
        model: the branch model.
        views: makes the views of a batch on the model's device.
        optimizer: the recipe's optimiser options.
        work: the size of the run.
        seed: seed of the views.
        rank_every: steps between two readings of the ranks.

    Attributes:
        step: optimiser steps done.
        monitor: the `RankMonitor` that reads both branches, without hooks.
        last_reading: the newest row of the metrics.
    """

    first_bad: Tensor

    def __init__(
        self,
        model: DualBranch,
        views: Views,
        optimizer: OptimizerOptions,
        work: Work,
        *,
        seed: int = 0,
        rank_every: int = 10,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.views = views
        self.optimizer, self.work, self.seed = optimizer, work, seed
        self.monitor = RankMonitor(every=rank_every, steps=work.steps, layout="v n d", window=False, strict=True)
        self.step = 0
        self.register_buffer("first_bad", torch.tensor(-1), persistent=False)
        self.last_reading: dict[str, float] = {}
        self._outputs: Outputs | None = None  # kept of the newest batch during a step that is to be read
        self._losses: list[Tensor] = []  # of the batches of this step, each of all processes
        self._generator: torch.Generator | None = None

    @property
    def clock(self) -> Clock:
        """Where training stands."""
        return self.work.clock(self.step)

    @property
    def between_steps(self) -> bool:
        """Whether an optimiser step has just ended, so that no gradient waits for more batches."""
        return not self._losses

    @property
    def is_read(self) -> bool:
        """Whether this step is read: every `rank_every`-th step, and the last one."""
        return self.monitor.cadence.due(self.step) or self.step == self.work.steps - 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser; its rates are set from the clock at each step."""
        return build_optimizer(self.model, self.optimizer)

    def on_fit_start(self) -> None:
        """Reject a trainer that accumulates another number of batches than the clock counts to a step."""
        if (passes := self.trainer.accumulate_grad_batches) != self.work.accumulate:
            raise UserError(
                f"the trainer accumulates {passes} batches per step, but the run's work says "
                f"{self.work.accumulate}: pass Work(accumulate={passes}, ...)"
            )

    def training_step(self, batch: Batch | Crops, index: int) -> Tensor:
        """Make the views, run both branches, and return the loss."""
        clock = self.clock
        self.model.prepare(clock)
        set_rates(self.trainer.optimizers[0], self.optimizer, clock, self.work.images_per_step)
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        number = self.step * self.work.accumulate + len(self._losses)  # of the batch in the run
        self._generator.manual_seed(views_seed(self.seed, number, self.global_rank))
        outputs: Outputs = self.model(views_of(self.views, batch, self._generator))
        loss = joint_mean(outputs.loss.detach())  # so that all processes stop where one loss is not finite
        self._losses.append(loss)
        self._outputs = outputs if self.is_read else None
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(loss), self.step, self.first_bad)
        return outputs.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of what is frozen, and clip the others."""
        ready_gradients(optimizer, self.model, self.optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the optimiser's step, move the teacher, read both branches if due, and count the step."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_teacher(self.clock)
        if self._outputs is not None:
            self.check_finite()
            self._read(self._outputs, torch.stack(self._losses).mean())
        self._outputs, self._losses = None, []
        self.step += 1

    def _read(self, outputs: Outputs, loss: Tensor) -> None:
        """Read the joint batch of all processes, so that no number depends on how many there are.

        Of the online branch, only the views that the target branch sees too are read: views of one size.
        """
        target = gather_rows(outputs.target)
        online = gather_rows(outputs.online[: len(target)])
        self.monitor.update(online, target, step=self.step, exponent=self._exponent())
        self.last_reading = (
            {"epoch": self.clock.epoch, "loss": float(loss)}
            | self.monitor.history[-1].numbers()
            | {
                "lr": self.optimizer.rate(self.clock, self.work.images_per_step),
                "momentum": self.model.momentum_at(self.clock),
            }
        )
        for logger in self.trainer.loggers:
            logger.log_metrics(self.last_reading, step=self.step)

    def _exponent(self) -> float | None:
        """The exponent that an `auto` filter chose for this step, if the model has one."""
        filters = (m for m in self.model.modules() if isinstance(m, SpectralFilter))
        return next((float(f.exponent) for f in filters if f.exponent is not None), None)

    def check_finite(self, *, weights: bool = False) -> None:
        """Stop training if a loss was not finite, or if the weights are not.

        Args:
            weights: check the weights too, because a finite loss may have a gradient that is not finite.

        Raises:
            NonFiniteError: a loss or the weights are not finite; the message names the step of the first bad loss.
        """
        if (step := int(self.first_bad)) >= 0:
            raise NonFiniteError(f"the loss is not finite at step {step}")
        if weights:
            norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
            if not torch.stack(norms).isfinite().all():
                raise NonFiniteError("the weights are not finite")
