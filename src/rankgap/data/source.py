"""A data set before it is decoded: where its images lie, their labels, and how they were read."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rankgap.data.encoded import Encoded

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one split.

    Args:
        images: where they lie.
        labels: (N,) int64, or None.
        classes: names of the labels, or None.
    """

    images: Encoded
    labels: Tensor | None = None
    classes: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A data set before it is decoded.

    Args:
        name: the spec.
        train: the training images.
        test: the test images, if there are any.
        notes: how it was read, a sentence each.
        statistics: known per-channel mean and deviation.
    """

    name: str
    train: Split
    test: Split | None
    notes: list[str] = field(default_factory=list)
    statistics: Statistics | None = None
