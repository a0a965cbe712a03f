"""A data set before it is decoded: its splits, and how they were read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rankgap.data.containers import Encoded
from rankgap.data.levels import Levels
from rankgap.errors import UserError

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


class Statistics(NamedTuple):
    """What a data set's values are.

    Attributes:
        mean: of each channel, in [0, 1].
        std: population standard deviation of each channel, of values in [0, 1].
        levels: how deep values become 8 bits; None if the images have 8 bits.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: Levels | None = None


class MissingDataError(UserError):
    """There are no images where a spec says."""


@dataclass(frozen=True, slots=True)
class Split:
    """The N images of one split.

    Args:
        images: the images, encoded.
        labels: (N,) int64, or None.
        classes: the names of the labels, or None.
    """

    images: Encoded
    labels: Tensor | None = None
    classes: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A data set before it is decoded.

    Args:
        name: the spec that named it.
        train: the training images.
        test: the test images, if there are any.
        notes: how it was read, one sentence each.
        statistics: the published per-channel mean and standard deviation, if there are any.
    """

    name: str
    train: Split
    test: Split | None
    notes: list[str] = field(default_factory=list)
    statistics: Statistics | None = None
