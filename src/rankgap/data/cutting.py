"""Cutting square views out of a decoded picture. Each is resized once, with antialiasing.

Shapes: C channels, (H, W) size of a picture, S side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from rankgap.data.levels import Pixels, Samples, rounded

PHOTO_CENTRE = 7 / 8  # share of a photograph's shorter side that evaluation sees: 224 of 256 px, as published
_SHRINKS = (8, 4, 2)  # the scales at which JPEG is decoded are 1 / these

# EXIF orientation -> whether rows are reversed, columns are reversed, and the axes swapped, in this order.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
ORIENTATIONS = frozenset(_TURNS)


class Cut(NamedTuple):
    """A part of an upright picture, in pixels of the original, and the side S of the view that it becomes."""

    top: float
    left: float
    height: float
    width: float
    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


Cuts = Callable[[int, int], Sequence[Cut]]  # height and width of an upright original -> its views


def whole(size: int) -> Cuts:
    """The whole picture, squashed to a square."""
    return lambda height, width: [Cut(0, 0, height, width, size)]


def centre(size: int, share: float) -> Cuts:
    """The central square whose side is a share of the shorter side.

    It is what remains if the shorter side is resized to size / share and the centre is cut out, with torchvision's
    rounding of the longer side and of the margins.
    """
    resized = round(size / share)

    def cuts(height: int, width: int) -> Sequence[Cut]:
        shorter = min(height, width)

        def along(side: int) -> tuple[float, float]:
            length = resized * side // shorter
            return round((length - size) / 2) * side / length, size * side / length

        (top, high), (left, wide) = along(height), along(width)
        return [Cut(top, left, high, wide, size)]

    return cuts


def is_turned(orientation: int) -> bool:
    """Whether height and width change places when the orientation is applied."""
    return _TURNS[orientation][2]


def turned(pixels: Samples, orientation: int) -> Samples:
    """Pixels (H, W, ...) turned upright."""
    upwards, leftwards, swapped = _TURNS[orientation]
    if upwards:
        pixels = pixels[::-1]
    if leftwards:
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if swapped else pixels


def shrinkage(cuts: Sequence[Cut]) -> int:
    """The largest of 1, 2, 4, 8 by which a picture may be shrunk so that no view has to be enlarged for it."""
    spare = min(min(cut.height, cut.width) / cut.size for cut in cuts)
    return next((shrink for shrink in _SHRINKS if shrink <= spare), 1)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Args:
        pixels: (H / shrink, W / shrink, C), both sides rounded up; uint8, or float32 in [0, 255]. They are as the
            file has them, not turned.
        height: H, in pixels of the original, not turned.
        width: W, in pixels of the original, not turned.
        orientation: the EXIF orientation, 1 to 8.
        shrink: by how much the picture was shrunk when it was decoded.
    """

    pixels: Samples
    height: int
    width: int
    orientation: int = 1
    shrink: int = 1

    def view(self, cut: Cut) -> Pixels:
        """A part of the picture turned upright, (S, S, C) uint8.

        Because it is square, it is turned after the resize. Floating-point pixels are rounded after it too.
        """
        top, left, height, width, size, interpolation = cut
        upwards, leftwards, swapped = _TURNS[self.orientation]
        if swapped:
            top, left, height, width = left, top, width, height
        if upwards:
            top = self.height - top - height
        if leftwards:
            left = self.width - left - width
        box = (left, top, left + width, top + height)
        if self.shrink > 1:
            box = (box[0] / self.shrink, box[1] / self.shrink, box[2] / self.shrink, box[3] / self.shrink)
        return rounded(turned(_resized(self.pixels, box, size, interpolation), self.orientation))


def _resized(pixels: Samples, box: tuple[float, float, float, float], size: int, interpolation: str) -> Samples:
    """The part (left, top, right, bottom) of a picture (H, W, C) as (size, size, C).

    A part in whole pixels is cut out and then resized, as torchvision does; torch takes a quarter of Pillow's
    time, and its values are within 1 of Pillow's. Pillow resizes a part with fractions, and the whole picture.
    """
    height, width, channels = pixels.shape
    left, top, right, bottom = map(int, box)
    if (left, top, right, bottom) == (0, 0, width, height) == (0, 0, size, size):
        return pixels
    if (left, top, right, bottom) == box and (bottom - top, right - left) != (height, width):
        # The copy is writable, as torch wants it, and torch would make it anyway.
        part = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
        found = F.interpolate(part, size=(size, size), mode=interpolation, antialias=True)
        view: Samples = found[0].permute(1, 2, 0).numpy()
        return view
    kind = Image.Resampling[interpolation.upper()]
    if channels == 3 and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((size, size), kind, box=box))
    bands = (Image.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(channels))
    return np.stack([np.asarray(band.resize((size, size), kind, box=box)) for band in bands], axis=2)
