"""Training by Lightning: optimiser, schedules, teacher, and the ranks of both branches along the way."""

from __future__ import annotations

import math
import warnings
from typing import Any

import lightning as L
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rankgap.branches import DualBranch, Outputs
from rankgap.data import Batch, ImageSet
from rankgap.diagnosis import Diagnosis, Doctor, read
from rankgap.errors import NonFiniteError
from rankgap.maps import Clock
from rankgap.presets import Work
from rankgap.recipes import Optimizer
from rankgap.views import Views


def learning_rate(optimizer: Optimizer, clock: Clock, batch_size: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine, both per step.

    Args:
        optimizer: the recipe's; its rates are for a batch of 256 and scale linearly.
        clock: the step.
        batch_size: images a step.
    """
    peak, final = optimizer.lr * batch_size / 256, optimizer.final_lr * batch_size / 256
    warmup = optimizer.warmup_epochs * clock.steps_per_epoch
    if clock.step < warmup:
        start = min(optimizer.warmup_lr, peak)
        return start + (peak - start) * clock.step / warmup
    progress = (clock.step - warmup) / max(clock.steps - warmup, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def parameter_groups(model: DualBranch, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Parameters by weight decay (none for biases and norms) and schedule (a predictor may keep its rate)."""
    branch = {id(p) for p in model.branch.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decays = optimizer.decay_all or p.ndim > 1
            constant = optimizer.constant_predictor_lr and id(p) not in branch
            groups.setdefault((decays, constant), []).append(p)
    return [
        {"params": p, "weight_decay": optimizer.weight_decay * decays, "constant": constant}
        for (decays, constant), p in groups.items()
    ]


def build_optimizer(model: DualBranch, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`."""
    groups = parameter_groups(model, optimizer)
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum, fused=True)
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=optimizer.lr, fused=True)
    lars: torch.optim.Optimizer = Lars(
        groups, lr=optimizer.lr, momentum=optimizer.momentum, trust_coeff=optimizer.trust, trust_clip=True
    )
    return lars


class EpochBatches(Dataset[Batch]):
    """The batches of one epoch, from a given step of the run on; the order depends on seed and epoch alone.

    Args:
        images: the training set.
        work: batch size and steps.
        seed: of the order.
        step: the run's step at which to begin.
        rank: of this process; it takes its share of each batch.
        world: number of processes.
    """

    def __init__(
        self, images: ImageSet, work: Work, seed: int, step: int, *, rank: int = 0, world: int = 1
    ) -> None:
        epoch, offset = divmod(step, work.steps_per_epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        used = order[: work.steps_per_epoch * work.batch_size].view(work.steps_per_epoch, -1)
        self.images, self.batches = images, used[offset:, rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.images.batch(self.batches[index])


class TrainingData(L.LightningDataModule):
    """Feeds `SelfSupervised` with uint8 batches; views are made on the model's device.

    Args:
        images: the training set.
        work: batch size and steps.
        seed: of the order.
        workers: processes that decode files ahead; 0 where the set lies in memory.
    """

    def __init__(self, images: ImageSet, work: Work, *, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.images, self.work, self.seed, self.workers = images, work, seed, workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """The rest of the current epoch (the trainer asks again each epoch)."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, SelfSupervised)
        batches = EpochBatches(
            self.images,
            self.work,
            self.seed,
            module.step,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None,
        )


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
