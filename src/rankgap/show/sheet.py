"""The contact sheet: images beside the views that training makes from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rankgap.show.colours import GREY
from rankgap.show.figures import DPI, header, save


def contact_sheet(images: Tensor, views: Tensor, path: str | Path) -> Figure:
    """Draw images beside their views, so that you see what the model will see.

    Args:
        images: originals, uint8 (B, C, H, W).
        views: (V, B, C, h, w), not normalised: values are shown from 0 to 1 and clipped outside.
        path: the PNG's file; its folder is created if there is none.
    """
    assert views.shape[1] == len(images) > 0, (views.shape, images.shape)
    originals = images.float()[None] / 255  # (1, B, C, H, W)
    cell = max(96, min(224, views.shape[-1]))
    tiles = np.concatenate([_tiles(originals, cell), _tiles(views, cell)])  # (1 + V, B, cell, cell, 3)
    number, gap = len(tiles), 6
    groups = max(1, min(math.ceil(len(images) / 6), 1300 // (number * (cell + gap))))
    rows = math.ceil(len(images) / groups)
    group_width = number * (cell + gap) + 3 * gap
    top, margin = 84, 12
    width, height = groups * group_width - 4 * gap + 2 * margin, top + rows * (cell + gap) + margin
    width = max(width, 560)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for index in range(len(images)):
        group, row = divmod(index, rows)
        for column in range(number):
            x = margin + group * group_width + column * (cell + gap) + (gap if column else 0)
            y = top + row * (cell + gap)
            canvas[y : y + cell, x : x + cell] = tiles[column, index]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas)
    header(
        figure,
        "Images and their views",
        "Left of each row: the image as stored. Beside it: the views that the model sees.",
    )
    for group in range(groups):
        for column in range(number):
            x = margin + group * group_width + column * (cell + gap) + (gap if column else 0)
            text = f"view {column}" if column else "image"
            figure.text(x / width, 1 - (top - 5) / height, text, size=8, color=GREY, va="bottom")
    return save(figure, path)


def _tiles(stack: Tensor, cell: int) -> NDArray[np.uint8]:
    """Images (V, B, C, h, w) in [0, 1] as RGB (V, B, cell, cell, 3); enlarged ones keep sharp pixels."""
    stack = stack.detach().float().cpu().clamp(0, 1)
    stack = stack[:, :, :3] if stack.shape[2] >= 3 else stack[:, :, :1].expand(-1, -1, 3, -1, -1)
    shrinks = max(stack.shape[-2:]) > cell
    flat = stack.flatten(0, 1)
    if shrinks:
        flat = F.interpolate(flat, size=(cell, cell), mode="bilinear", antialias=True)
    else:
        flat = F.interpolate(flat, size=(cell, cell), mode="nearest-exact")
    tiles: NDArray[np.uint8] = flat.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return tiles.reshape(*stack.shape[:2], cell, cell, 3)
