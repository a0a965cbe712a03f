"""The contact sheet: images beside the views that training makes from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rankgap.show.colours import GREY
from rankgap.show.figures import DPI, header, save

# In pixels. The sheet is at most _WIDTH x _HEIGHT, so that it fits on a screen.
_WIDTH, _HEIGHT, _LEAST_WIDTH = 1600, 1000, 560
_TOP, _MARGIN, _GAP, _BETWEEN, _NAME = 84, 12, 6, 24, 20
_LETTER = 6  # average width of a letter
_SMALLEST, _LARGEST = 96, 224  # small images are enlarged, and large ones shrunk, to these sides if there is room


def contact_sheet(
    images: Tensor, views: Tensor | Sequence[Tensor], names: Sequence[str], path: str | Path
) -> Figure:
    """Draw images beside their views, so that you see what the model will see.

    Args:
        images: originals, uint8 (B, C, H, W). Of more than 3 channels, the first three are shown as red, green and
            blue; of 2, the first.
        views: V views (B, C, h, w), not normalised: values are shown from 0 to 1 and clipped outside. Views
            smaller than the largest are drawn smaller.
        names: B names; one that is wider than the pictures above it is shortened in the middle.
        path: the PNG's file; its folder is created if there is none.
    """
    assert all(len(view) == len(images) == len(names) > 0 for view in views), (images.shape, len(names))
    largest = max(view.shape[-1] for view in views)
    shares = [1.0, *(view.shape[-1] / largest for view in views)]  # of the largest view's side
    cell, columns = _grid(len(images), shares, largest)
    sides = [max(1, int(cell * share)) for share in shares]
    lefts = [sum(sides[:k]) + k * _GAP for k in range(len(sides))]
    tiles = [_tiles(each, side) for each, side in zip([images.float() / 255, *views], sides, strict=True)]
    group, row = lefts[-1] + sides[-1] + _BETWEEN, cell + _NAME
    width = max(_LEAST_WIDTH, columns * group - _BETWEEN + 2 * _MARGIN)
    height = _TOP + math.ceil(len(images) / columns) * row + _MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(x: int, y: int, text: str, size: float) -> None:
        # `parse_math`: a name with two dollar signs is not a formula.
        figure.text(x / width, 1 - y / height, text, size=size, color=GREY, va="bottom", parse_math=False)

    canvas = np.full((height, width, 3), 255, np.uint8)
    for index, name in enumerate(names):
        x, y = _MARGIN + index % columns * group, _TOP + index // columns * row
        for column, (left, side) in enumerate(zip(lefts, sides, strict=True)):
            canvas[y : y + side, x + left : x + left + side] = tiles[column][index]
            if index < columns:
                heading = f"view {column}" if column else "image"
                narrow = side < _LETTER * len(heading)
                write(x + left, _TOP - 5, str(column) if narrow else heading, 8)
        write(x, y + cell + 15, shorten(name, (group - _BETWEEN) // _LETTER), 7)
    figure.figimage(canvas)
    header(
        figure,
        "Images and their views",
        "Each image beside the views of it that the model sees." + _shown_channels(images.shape[1]),
    )
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return save(figure, path)


def shorten(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters by leaving out its middle.

    Example:
        >>> shorten("holidays/IMG_20240711_0042.jpg", 16)
        'holiday…0042.jpg'
    """
    if len(text) <= most:
        return text
    head = max(most - 1, 2) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def _grid(count: int, shares: Sequence[float], side: int) -> tuple[int, int]:
    """The cell size and number of columns with which `count` groups best fill the sheet.

    A group has a cell, or a share of one, for each image and view. Views are enlarged by whole factors only.
    """

    def room(columns: int) -> int:
        group = (_WIDTH - 2 * _MARGIN + _BETWEEN) // columns - _BETWEEN
        across = int((group - _GAP * (len(shares) - 1)) / sum(shares))
        down = (_HEIGHT - _TOP - _MARGIN) // math.ceil(count / columns) - _NAME
        return min(across, down)

    columns = max(range(1, count + 1), key=room)
    cell = max(1, min(room(columns), max(_SMALLEST, min(_LARGEST, side))))
    return (cell // side * side if cell > side else cell), columns


def _shown_channels(channels: int) -> str:
    if channels in (1, 3):
        return ""
    shown = "the first is shown" if channels == 2 else "the first three are shown as red, green and blue"
    return f" Of {channels} channels, {shown}."


def _tiles(stack: Tensor, cell: int) -> NDArray[np.uint8]:
    """Images (B, C, h, w) in [0, 1] as RGB (B, cell, cell, 3); enlarged ones keep sharp pixels."""
    stack = stack.detach().float().cpu().clamp(0, 1)
    stack = stack[:, :3] if stack.shape[1] >= 3 else stack[:, :1].expand(-1, 3, -1, -1)
    if max(stack.shape[-2:]) > cell:
        stack = F.interpolate(stack, size=(cell, cell), mode="bilinear", antialias=True)
    else:
        stack = F.interpolate(stack, size=(cell, cell), mode="nearest-exact")
    tiles: NDArray[np.uint8] = stack.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return tiles
