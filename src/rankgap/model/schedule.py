"""Time: what training does at which step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Where training stands; every schedule is a function of it, so that a resumed run needs no other state.

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
        """Set what depends on the time of training; no tensor is touched."""
        raise NotImplementedError
