"""A data set before it is decoded: its splits, and how they were read."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rankgap.data.containers import Encoded
from rankgap.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


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
