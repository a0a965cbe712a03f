"""Crops, resizing and blur as matrix products.

Each is linear and separable, so it is one small matrix per image and axis: rows (S, H) @ image (H, W) @ columns
(W, S), at any interpolation and with antialiasing. Reading neighbour by neighbour (`grid_sample`) takes three to
six times as long at 32 pixels, about as long at 224 with bicubic, and reaches outside the crop.

Shapes: B images, C channels, (H, W) size of an image, S side of what is read from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def bilinear(distance: Tensor) -> Tensor:
    """The triangle of half-width 1; overwrites its input."""
    return distance.neg_().add_(1).relu_()


def bicubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2 (as PIL, and as torch with antialias), times two: rows are normalised later.

    In truncated powers q = max(2 - d, 0), p = max(1 - d, 0) it is q^2 (q - 1) / 2 + p^2 (1 - 2 p): no branches.
    Overwrites its input.
    """
    q = distance.neg_().add_(2).relu_()
    below = q - 1
    p = below.relu()
    return q.square_().mul_(below).addcmul_(p.square(), p.mul(-4).add_(2))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": bicubic, "bilinear": bilinear}


class Taps(NamedTuple):
    """A resampling of one axis: weights and int64 pixel indices, both (..., S, taps)."""

    weights: Tensor
    pixels: Tensor

    def matrices(self, stored: int) -> Tensor:
        """As matrices (..., S, stored) to multiply pixels with."""
        zeros = self.weights.new_zeros(*self.weights.shape[:-1], stored)
        return zeros.scatter_add_(-1, self.pixels, self.weights)


def axis_taps(
    start: Tensor,
    length: Tensor,
    stored: int,
    size: int,
    kernel: Callable[[Tensor], Tensor],
    flip: Tensor | None = None,
) -> Taps:
    """Crop, flip and resize along one axis.

    Equal to torch's `interpolate(..., antialias=True)` of the crop: sample i lies at start + length (i + 1/2) / S,
    the kernel is stretched by length / S where that shrinks, pixels outside the crop weigh nothing, and weights
    sum to 1.

    Args:
        start: (...) first pixel of the crop; need not be whole.
        length: (...) its length in pixels, at most `stored`.
        stored: pixels of the axis.
        size: samples to take, S.
        kernel: of (..., S, taps) distances; zero from 2 on.
        flip: bool (...), which axes to reverse.
    """
    start, length = start[..., None], length[..., None]
    sample = torch.arange(0.5, size, device=start.device)
    if flip is not None:
        sample = torch.where(flip[..., None], size - sample, sample)
    step = length / size
    centre = torch.addcmul(start, step, sample).sub_(0.5)  # (..., S), where pixel j lies at j
    taps = 2 * math.ceil(2 * max(1.0, stored / size))
    first = centre.sub(taps / 2).floor_().add_(1)
    pixels = first[..., None] + torch.arange(taps, device=start.device)
    distances = (pixels - centre[..., None]).div_(step.clamp(min=1)[..., None]).abs_()
    start, length = start[..., None], length[..., None]
    weights = kernel(distances).mul_((pixels > start - 1) & (pixels < start + length))
    return Taps(weights.div_(weights.sum(-1, keepdim=True)), pixels.clamp_(0, stored - 1).long())


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur with reflected borders along one axis: (B, size, size) for sigma (B,) in pixels."""
    i = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    rate = (-0.5 / sigma.square())[:, None, None]
    direct, mirrored = i[:, None] - i, i[:, None] + i
    weights = torch.exp(direct.square() * rate)
    # The edge pixel itself is not repeated: pixel j is met again at -j and at 2 (S - 1) - j.
    weights += torch.exp(mirrored.square() * rate) * (i > 0)
    weights += torch.exp((mirrored - 2 * (size - 1)).square() * rate) * (i < size - 1)
    return weights.div_(weights.sum(-1, keepdim=True))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, S, H) @ images (B, C, H, W) @ columns (B, S, W)^T -> (B, C, S, S)."""
    b, c, h, w = images.shape
    across = torch.bmm(images.reshape(b, c * h, w), columns.mT)  # (B, C*H, S)
    return torch.matmul(rows[:, None], across.view(b, c, h, -1))
