"""The levels of deep images: which of their values become 0 and 255, and what is in between.

A deep image has more than 8 bits a channel: integers of 16 or 32 bits, or floating-point numbers. Views take
8 bits, so one linear map per channel, the same for a whole data set, takes a range of values to 0 ... 255. Values
outside the range are clipped; 256 levels remain within it. Values are rounded once, after the image is resized.
8-bit images are never mapped.

Shapes: (H, W) size of an image, C channels, P pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rankgap.errors import UserError

Values = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # 8-bit values, or not yet rounded ones in [0, 255]
Depth = Literal["8-bit", "integer", "floating-point"]

PERCENTILES = (0.1, 99.9)  # of the values of a channel: they become 0 and 255
SAMPLE = 200  # images from which levels are decided
_PIXELS = 10_000  # taken of each
_LISTED = 4  # channels whose levels a note lists

_TYPES: dict[str, Depth] = {"uint8": "8-bit"}
_TYPES |= dict.fromkeys(("uint16", "int16", "uint32", "int32"), "integer")
_TYPES |= dict.fromkeys(("float16", "float32", "float64"), "floating-point")
TYPES = tuple(_TYPES)  # of pixels that are read, by NumPy's names
FULL_SCALE = ("uint8", "uint16")  # the types of which the whole range is an image's: these may be mixed


def depth(dtype: np.dtype[Any] | str) -> Depth:
    """The kind of number that pixels of a type are: images of different kinds share no scale."""
    return _TYPES[np.dtype(dtype).name]


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Up to `most` of the positions [0, count), evenly spread."""
    picked = min(count, most)
    return np.arange(picked) * count // max(picked, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """One linear map for each of C channels.

    Args:
        low: the values that become 0.
        high: the values that become 255.
        depth: the kind of number that the values are.

    Example:
        >>> values = np.array([[[0], [100], [2100], [9999]]], np.uint16)
        >>> Levels(low=(100.0,), high=(4100.0,), depth="integer").apply(values).tolist()
        [[[0.0], [0.0], [127.5], [255.0]]]
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    depth: Literal["integer", "floating-point"]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(
            math.isfinite(high - low) and low < high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise UserError(
                f"expected levels with low < high for each channel, got low {self.low} and high {self.high}"
            )

    @classmethod
    def full(cls, channels: int) -> Levels:
        """Full scale to full scale (65,535 to 255), so that 16-bit images are as bright as 8-bit ones."""
        return cls(low=(0.0,) * channels, high=(65535.0,) * channels, depth="integer")

    def apply(self, values: Values) -> npt.NDArray[np.float32]:
        """Values (..., C) of any type as float32 (..., C) in [0, 255], not rounded; computed in float64."""
        assert values.shape[-1] == len(self.low), (values.shape, self)
        mapped = np.moveaxis(np.empty((len(self.low), *values.shape[:-1]), np.float32), 0, -1)  # plane by plane
        for c, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            share = (values[..., c].astype(np.float64) - low) / (high - low)
            mapped[..., c] = 255 * share.clip(0, 1)
        return mapped


def rounded(values: Samples) -> Pixels:
    """Values in about [0, 255] as uint8; a resize may overshoot the range."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    whole: Pixels = np.rint(values.clip(0, 255)).astype(np.uint8)
    return whole


def check_depth(dtype: np.dtype[Any] | str, levels: Levels | None) -> None:
    """Refuse an image whose values are on another scale than a data set's: that of its levels, or 8 bits.

    Without levels, 8-bit images are taken as they are, and unsigned 16-bit ones at full scale.

    Raises:
        ValueError: the pixels are of another kind.
    """
    name = np.dtype(dtype).name
    if levels is None and name not in FULL_SCALE:
        expected = "8-bit or unsigned 16-bit"
    elif levels is not None and depth(name) != levels.depth:
        expected = {"integer": "16-bit or 32-bit integer"}.get(levels.depth, levels.depth)
    else:
        return
    raise ValueError(f"it has {name} pixels, where {expected} ones are expected; save all images alike")


def check_finite(values: Values) -> None:
    """Refuse an image with values that no level stands for.

    Raises:
        ValueError: some values are not finite numbers of 32 bits.
    """
    if depth(values.dtype) != "floating-point":
        return
    with np.errstate(over="ignore"):
        bad = values.size - int(np.isfinite(values.astype(np.float32, copy=False)).sum())
    if bad:
        raise ValueError(
            f"{bad:,} of its {values.size:,} values are NaN, infinite or too large; replace them (by 0, say)"
        )


@dataclass(slots=True)
class Sampled:
    """Values of some images of a data set, from which its levels are decided.

    Attributes:
        images: how many images were looked at.
        parts: values (P, C) of each image, at most 10,000 pixels evenly spread over it.
        lowest: the smallest value of all pixels of these images.
        highest: the largest.
    """

    images: int = 0
    parts: list[Values] = field(default_factory=list)
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, image: Values) -> None:
        """Take up an image (H, W, C)."""
        flat = image.reshape(-1, image.shape[-1])
        self.images += 1
        self.parts.append(flat[spread(len(flat), _PIXELS)])
        self.lowest = min(self.lowest, float(image.min()))
        self.highest = max(self.highest, float(image.max()))

    def decide(self, example: str) -> tuple[Levels, str]:
        """The levels of a data set, and a sentence for the user that states them.

        They are the 0.1% and 99.9% percentiles of a channel's values (interpolated linearly, as NumPy does). Where
        these are equal, as in images that are nearly all background, they are its smallest and largest value.

        Args:
            example: the name of one of the images, for an error.

        Raises:
            UserError: a channel is constant.
        """
        values = np.concatenate(self.parts)
        channels = [values[:, c].astype(np.float64) for c in range(values.shape[1])]
        low, high = np.array([np.percentile(channel, PERCENTILES) for channel in channels]).T
        flat = low == high
        low, high = np.where(flat, values.min(0), low), np.where(flat, values.max(0), high)
        count = f"{self.images:,} image" + ("s" if self.images > 1 else "")
        for channel in np.flatnonzero(low == high)[:1].tolist():
            which = "every value" if len(low) == 1 else f"every value of channel {channel + 1}"
            remedy = "" if len(low) == 1 else ", or leave that channel out of them"
            raise UserError(
                f"{which} is {_number(low[channel])} in {example} and the others of the {count} looked at, so no "
                f"range of values can become 0 to 255: check how the files were written{remedy}"
            )
        kind = depth(values.dtype)
        assert kind != "8-bit"
        levels = Levels(low=tuple(low.tolist()), high=tuple(high.tolist()), depth=kind)
        share = f"{PERCENTILES[0]:g}% to {PERCENTILES[1]:g}% of {count}"
        became = f"values {_ranges(levels)} ({share}) become 0 to 255, channel by channel"
        if flat.any():
            became += "; a channel that is nearly all one value is taken from its smallest to its largest"
        return levels, f"{self._kind(values.dtype)}: {became}"

    def _kind(self, dtype: np.dtype[Any]) -> str:
        bits = 8 * dtype.itemsize
        if depth(dtype) == "integer" and self.lowest >= 0:
            return f"{bits}-bit images with {int(self.highest).bit_length()} bits in use"
        kind = f"{bits}-bit" + ("" if depth(dtype) == "integer" else " floating-point")
        return f"{kind} images with values of {_number(self.lowest)} to {_number(self.highest)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _ranges(levels: Levels) -> str:
    pairs = [f"from {_number(low)} to {_number(high)}" for low, high in zip(levels.low, levels.high, strict=True)]
    if len(pairs) == 1:
        return pairs[0]
    listed = [f"{pair} in channel {c}" for c, pair in enumerate(pairs[:_LISTED], 1)]
    return ", ".join(listed) + (f" and so on for {len(pairs)} channels" if len(pairs) > _LISTED else "")
