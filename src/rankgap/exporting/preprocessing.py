"""From images to what the encoder takes. This file needs torch alone: every exported folder holds a copy of it.

Shapes: B images, C channels, (H, W) size of an image, S side of the view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Preprocessing(nn.Module):
    """Images (B, C, H, W) -> normalised views (B, C, S, S) float32: a central square, resized.

    The resize is bicubic, and antialiased where it shrinks (Keys's kernel, as in PIL). It is one matrix for each
    axis, so that it can be part of an exported graph, for images of any size.

    Args:
        size: S, side of the view in pixels.
        crop_share: side of the square, as a share of an image's shorter side.
        mean: mean of each channel in [0, 1] to normalise with.
        std: standard deviation of each channel in [0, 1] to normalise with.
        values: what an image holds: uint8, or deep values, int32 or float32, which `levels` map.
        levels: {"low": [...], "high": [...]}: the deep values that become 0 and 255, one of each for a channel.
            What lies in between is mapped linearly and rounded, what lies outside is clipped.
        interpolation: "bicubic", the only one there is.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        *,
        size: int,
        crop_share: float,
        mean: Sequence[float],
        std: Sequence[float],
        values: str = "uint8",
        levels: Mapping[str, Sequence[float]] | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        if interpolation != "bicubic":
            raise ValueError(f"expected interpolation bicubic, got {interpolation!r}")
        self.size, self.crop_share, self.values = size, crop_share, values
        kinds = {"mean": (mean, torch.float32), "std": (std, torch.float32)}
        if levels is not None:
            kinds |= {name: (levels[name], torch.float64) for name in ("low", "high")}
        for name, (numbers, dtype) in kinds.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=dtype)[:, None, None], persistent=False)
        self.deep = levels is not None

    @classmethod
    def of(cls, folder: str | Path) -> Preprocessing:
        """The preprocessing that an exported folder describes in its config.json."""
        described: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())["preprocessing"]
        return cls(**described)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> views (B, C, S, S) float32."""
        height, width = images.shape[-2:]
        pixels = (
            torch.arange(height, device=images.device),
            torch.arange(width, device=images.device),
        )
        sides = torch.stack(
            [torch.scalar_tensor(n, dtype=torch.float32, device=images.device) for n in (height, width)]
        )
        shorter = sides.min()
        start, length = ((sides - shorter) / 2).floor(), shorter.expand(2)
        if self.crop_share < 1:  # what remains if the shorter side is resized to S / crop_share
            resized = (round(self.size / self.crop_share) * sides / shorter).floor()
            start = ((resized - self.size) / 2).round() * sides / resized
            length = self.size * sides / resized
        rows, columns = (self._resize(start[k], length[k], pixels[k]) for k in (0, 1))
        if self.deep:
            share = (images.double() - self.low) / (self.high - self.low)
            images = (255 * share.clamp(0, 1)).float().round()
        view = rows @ images.float() @ columns.mT
        return ((view / 255).clamp(0, 1) - self.mean) / self.std

    def _resize(self, start: Tensor, length: Tensor, pixels: Tensor) -> Tensor:
        """The matrix (S, N) that resizes a part of N pixels: sample i lies at start + length (i + 1/2) / S."""
        step = length / self.size
        sample = torch.arange(0.5, self.size, device=pixels.device)
        centre = torch.addcmul(start, step, sample).sub(0.5)[:, None]  # pixel j lies at j
        near = (2 - ((pixels - centre) / step.clamp(min=1)).abs()).relu()
        nearest = (near - 1).relu()
        weights = near * near * (near - 1) + nearest * nearest * (2 - 4 * nearest)
        weights = weights * ((pixels > start - 1) & (pixels < start + length))
        return weights / weights.sum(-1, keepdim=True)
