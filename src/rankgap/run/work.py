"""The size of a run."""

from __future__ import annotations

from dataclasses import dataclass

from rankgap.errors import check_within
from rankgap.model.schedule import Clock
from rankgap.watch.cadence import interval

SMALL_IMAGES = 100_000
SMALL_BATCH = 256
LONG = 20_000  # optimiser steps; from here on the published schedules fit as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The size of a run, in images and steps.

    Args:
        images: training images.
        batch_size: images per batch, over all devices.
        accumulate: batches per optimiser step, whose gradients are averaged.
        epochs: passes over the images.
        features: width of the encoder's output.
        devices: processes that share a batch.
    """

    images: int
    batch_size: int
    epochs: int
    features: int
    devices: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        count = (1, 2**53)
        check_within(self, images=count, batch_size=count, epochs=count, features=count, devices=count)
        check_within(self, accumulate=count)

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; an incomplete last step is left out."""
        return max(self.images // self.images_per_step, 1)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def small(self) -> bool:
        """Whether the preset for small work applies."""
        return self.images <= SMALL_IMAGES and self.images_per_step <= SMALL_BATCH and self.steps < LONG

    @property
    def rank_every(self) -> int:
        """Default number of steps between readings."""
        return interval(self.steps)

    def clock(self, step: int) -> Clock:
        """Where training stands at a step."""
        return Clock(step=step, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
