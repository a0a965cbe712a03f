"""Schedules: what training does at each step.

Everything here is a function of the step (and of the run's seed), so that a resumed run needs no other state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

_SEEDS = 2**63  # torch's generators take no more
_EPOCHS_APART, _STEPS_APART = 1_000_003, 4099  # primes, so that neighbouring seeds do not collide


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Where training stands.

    Args:
        step: optimiser steps done.
        steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch.

    Example:
        >>> clock = Clock(step=15, steps=100, steps_per_epoch=10)
        >>> clock.epoch, clock.progress
        (1.5, 0.15)
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return min(self.step / self.steps, 1.0)


class Scheduled(nn.Module):
    """A module that follows the clock: `prepare` is called before each training step."""

    def prepare(self, clock: Clock) -> None:
        """Set what depends on the step; no tensor is touched."""
        raise NotImplementedError


def learning_rate(clock: Clock, *, peak: float, final: float, warmup_epochs: float, warmup_from: float) -> float:
    """The learning rate of a step: a linear warm-up, then a cosine, both per step.

    Args:
        clock: where training stands.
        peak: the rate at the end of the warm-up.
        final: the rate at the end of the cosine.
        warmup_epochs: length of the warm-up.
        warmup_from: the rate at the start of the warm-up, at most the peak.
    """
    warmup = warmup_epochs * clock.steps_per_epoch
    if clock.step < warmup:
        start = min(warmup_from, peak)
        return start + (peak - start) * clock.step / warmup
    progress = (clock.step - warmup) / max(clock.steps - warmup, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def weight_decay(clock: Clock, base: float, final: float) -> float:
    """The weight decay of a step, on a cosine from one value to the other over the whole run (DINO)."""
    return final + (base - final) * (1 + math.cos(math.pi * clock.progress)) / 2


def teacher_momentum(clock: Clock, base: float) -> float:
    """The momentum of the EMA teacher, 1 - (1 - base) (cos(pi progress) + 1) / 2 (BYOL section 3.3)."""
    return 1 - (1 - base) * (math.cos(math.pi * clock.progress) + 1) / 2


def ramp(clock: Clock, start: float, end: float, epochs: float) -> float:
    """A value that goes linearly from `start` to `end` in some epochs, then stays there (DINO's temperature)."""
    share = min(clock.epoch / epochs, 1.0) if epochs > 0 else 1.0
    return start + (end - start) * share


def is_frozen(clock: Clock, epochs: float) -> bool:
    """Whether training is still within the first `epochs`."""
    return clock.epoch < epochs


def order_seed(seed: int, epoch: int) -> int:
    """The seed for the order of the images in an epoch."""
    return (seed * _EPOCHS_APART + epoch) % _SEEDS


def views_seed(seed: int, step: int, process: int) -> int:
    """The seed for the random views of a step in one process of a run."""
    return ((seed * _EPOCHS_APART + step) * _STEPS_APART + process) % _SEEDS
