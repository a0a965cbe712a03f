"""The random numbers of views: which crop of each image, and how its colours change.

Shapes: V views, B images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankgap.views.view_config import ViewConfig

_TRIES = 10  # crops to try before the central one is taken, as in torchvision


class Parameters(NamedTuple):
    """The random numbers of V views of B images; all are (V, B). Crops are in pixels of the original images.

    For an image that is not jittered, the three factors are 1 and the hue shift, in turns, is 0. `quarters` is the
    number of quarter turns, counter-clockwise.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    sigma: Tensor
    flip: Tensor
    grey: Tensor
    blur: Tensor
    solarize: Tensor
    vertical_flip: Tensor
    quarters: Tensor


def _ranges(config: ViewConfig) -> list[tuple[float, float]]:
    """The bounds of each uniform number to draw: areas, log ratios, factors, hue, sigma, position."""
    least, greatest = config.ratio
    return [
        *[config.scale] * _TRIES,
        *[(math.log(least), math.log(greatest))] * _TRIES,
        *[(max(0.0, 1 - strength), 1 + strength) for strength in config.jitter[:3]],
        (-config.jitter[3], config.jitter[3]),
        config.blur_sigma,
        (0, 1),
        (0, 1),
    ]


def _chances(config: ViewConfig) -> list[float]:
    return [config.jitter_p, config.flip, config.grey_p, config.blur_p, config.solarize_p]


def _first_that_fits(
    areas: Tensor, ratios: Tensor, ratio: Tensor, height: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The size of each crop: that of the first try that fits, else the largest central one with an allowed ratio.

    Args:
        areas: (V, 10, B), of the tries, in pixels.
        ratios: (V, 10, B), of the tries, width / height.
        ratio: (V, 2, 1), the smallest and the largest allowed.
        height: (B,), of the images.
        width: (B,), of the images.

    Returns:
        Height and width (V, B) of the crops, and whether a try fitted, bool (V, B).
    """
    widths, heights = (areas * ratios).sqrt_().round_(), (areas / ratios).sqrt_().round_()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    found, first = fits.byte().max(1, keepdim=True)  # the first of equal maxima
    least, greatest = ratio.unbind(1)  # (V, 1)
    central_height = torch.where(width < height * least, (width / least).round_(), height)
    central_width = torch.where(width > height * greatest, (height * greatest).round_(), width)
    fitted = found[:, 0] > 0
    h = torch.where(fitted, heights.gather(1, first)[:, 0], central_height)
    w = torch.where(fitted, widths.gather(1, first)[:, 0], central_width)
    return h, w, fitted


class Draw(nn.Module):
    """Draws the parameters of views, with the distribution of torchvision's transforms on single images.

    Args:
        configs: one for each of the V views.
    """

    ranges: Tensor
    chances: Tensor
    orientation: Tensor
    ratio: Tensor

    def __init__(self, configs: Sequence[ViewConfig]) -> None:
        super().__init__()
        self.views = len(configs)
        self.turns = any(config.vertical_flip or config.turn for config in configs)
        constants = {
            "ranges": torch.tensor([_ranges(c) for c in configs]).mT[..., None],  # (V, 2, 27, 1)
            "chances": torch.tensor([_chances(c) for c in configs])[..., None],  # (V, 5, 1)
            "orientation": torch.tensor([(c.vertical_flip, c.turn) for c in configs])[..., None],  # (V, 2, 1)
            "ratio": torch.tensor([c.ratio for c in configs])[..., None],  # (V, 2, 1)
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.float(), persistent=False)

    def forward(self, height: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Parameters:
        """Draw the parameters of all views.

        `RandomResizedCrop` tries ten crops and takes the first that fits. Here the ten crops of all images and
        views are drawn at once.

        Args:
            height: float32 (B,), of the original images in pixels.
            width: float32 (B,), of the original images in pixels.
            generator: a generator on the device of `height`; the default generator if None.
        """
        low, high = self.ranges.unbind(1)
        numbers = low.shape[1]
        shape = self.views, numbers + self.chances.shape[1], len(height)
        uniform = torch.rand(shape, generator=generator, device=height.device)
        x = torch.addcmul(low, high - low, uniform[:, :numbers])
        areas, ratios, (*factors, hue, sigma, y, z) = (
            x[:, :_TRIES] * (height * width),
            x[:, _TRIES : 2 * _TRIES].exp(),
            x[:, 2 * _TRIES :].unbind(1),
        )
        jitter, flip, grey, blur, solarize = (uniform[:, numbers:] < self.chances).unbind(1)
        h, w, fitted = _first_that_fits(areas, ratios, self.ratio, height, width)
        top, left = (
            torch.where(fitted, torch.minimum((u * (free + 1)).floor_(), free), (free / 2).floor_())
            for u, free in ((y, height - h), (z, width - w))
        )
        brightness, contrast, saturation = (torch.where(jitter, factor, 1.0) for factor in factors)
        colours = brightness, contrast, saturation, torch.where(jitter, hue, 0.0)
        orientation = self._draw_orientation(flip, generator)
        return Parameters(top, left, h, w, *colours, sigma, flip, grey, blur, solarize, *orientation)

    def _draw_orientation(self, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The vertical flips, bool, and the quarter turns, int64, both of the shape of `like` (V, B).

        If no view has any, no random numbers are drawn, so that all other parameters stay the same.
        """
        if not self.turns:
            return torch.zeros_like(like), torch.zeros_like(like, dtype=torch.int64)
        uniform = torch.rand((2, *like.shape), generator=generator, device=like.device)
        vertical_flip, turn = self.orientation.unbind(1)  # (V, 1)
        # Each third of [0, turn) is one, two or three quarter turns.
        thirds = (3 * uniform[1] / turn.clamp(min=1e-9)).clamp(max=3.0).long().clamp(max=2)
        return uniform[0] < vertical_flip, torch.where(uniform[1] < turn, 1 + thirds, 0)
