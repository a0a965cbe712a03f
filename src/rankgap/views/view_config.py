"""The distribution of one random view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rankgap.errors import UserError, unknown
from rankgap.views.resampling import KERNELS

Interpolation = Literal["bicubic", "bilinear"]
LARGEST_VIEW = 8192  # pixels; beyond this, not even a batch of two fits into memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """The distribution of one view; names and meanings are torchvision's.

    Microscope and satellite images have no natural upright. With `vertical_flip=0.5, turn=0.75`, all eight
    orientations are equally likely.

    Args:
        size: side of the view in pixels; None for the run's.
        target: whether the target branch sees the view; the online branch sees every view.
        scale: the smallest and largest area of the crop, as shares of the image's area in (0, 1].
        ratio: the smallest and largest width / height of the crop, which is drawn uniformly in its logarithm.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        turn: probability of a rotation by 90, 180 or 270 degrees, which are equally likely.
        jitter: strengths s of brightness, contrast, saturation (factor in [max(0, 1 - s), 1 + s]) and hue (shift
            in [-s, s] turns, s at most 0.5).
        jitter_p: probability of the jitter; all four are jittered, or none.
        grey_p: probability of greyscale.
        blur_p: probability of a Gaussian blur.
        blur_sigma: the smallest and largest standard deviation of the blur, in pixels of the view.
        solarize_p: probability that values of 0.5 or more are inverted.
        interpolation: "bicubic" or "bilinear", of the resized crop.

    Raises:
        UserError: a value is outside its range.
    """

    size: int | None = None
    target: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    turn: float = 0.0
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.size is not None and not 2 <= self.size <= LARGEST_VIEW:
            raise UserError(f"expected size to be from 2 to {LARGEST_VIEW} pixels, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"expected scale=(smallest, largest) with 0 < smallest <= largest <= 1, got {self.scale}"
            )
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UserError(
                    f"expected {name}=(smallest, largest) with 0 < smallest <= largest, got {(low, high)}"
                )
        for name in ("flip", "vertical_flip", "turn", "jitter_p", "grey_p", "blur_p", "solarize_p"):
            if not 0 <= (p := getattr(self, name)) <= 1:
                raise UserError(f"expected {name} to be a probability in [0, 1], got {p}")
        if not (all(0 <= s < math.inf for s in self.jitter[:3]) and 0 <= self.jitter[3] <= 0.5):
            raise UserError(
                "expected jitter=(brightness, contrast, saturation, hue), hue in [0, 0.5] and the others finite "
                f"and >= 0, got {self.jitter}"
            )
        if self.interpolation not in KERNELS:
            raise unknown("interpolation", self.interpolation, KERNELS)

    @property
    def is_constant(self) -> bool:
        """Whether every draw gives the same view of an image."""
        certain = all(p in (0, 1) for p in (self.flip, self.vertical_flip, self.grey_p, self.solarize_p))
        never = not (self.turn or self.blur_p or (self.jitter_p and any(self.jitter)))
        return certain and never and self.scale == (1, 1) and self.ratio == (1, 1)
