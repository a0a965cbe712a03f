"""Crops, resizing and blur as matrix products.

Each of them is linear and separable, so it is one small matrix per image and axis: rows (S, H) @ image (H, W) @
columns (W, S), with any interpolation and with antialiasing. Reading neighbour by neighbour (`grid_sample`) takes
three to six times as long at 32 pixels, takes about as long at 224 with bicubic, and reads pixels outside the
crop.

Shapes: B images, C channels, (H, W) size of an image, S side of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def bilinear(distance: Tensor) -> Tensor:
    """The triangle of half-width 1. Overwrites its input."""
    return distance.neg_().add_(1).relu_()


def bicubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2 (as in PIL, and in torch with antialias), times two; `crop_taps` normalises.

    In the truncated powers q = max(2 - d, 0) and p = max(1 - d, 0) it is q^2 (q - 1) / 2 + p^2 (1 - 2 p), without
    branches. Overwrites its input.
    """
    q = distance.neg_().add_(2).relu_()
    below = q - 1
    p = below.relu()
    return q.square_().mul_(below).addcmul_(p.square(), p.mul(-4).add_(2))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": bicubic, "bilinear": bilinear}


class Taps(NamedTuple):
    """A resampling of one axis.

    Attributes:
        weights: (..., taps, S).
        pixels: the index of the pixel that each weight belongs to, (..., taps, S) int64.
    """

    weights: Tensor
    pixels: Tensor

    def matrices(self, stored: int) -> Tensor:
        """The matrices (..., stored, S) that multiply pixels from the right."""
        zeros = self.weights.new_zeros(*self.weights.shape[:-2], stored, self.weights.shape[-1])
        return zeros.scatter_add_(-2, self.pixels, self.weights)


def crop_taps(
    start: Tensor,
    length: Tensor,
    stored: tuple[int, int],
    size: int,
    kernel: Callable[[Tensor], Tensor],
    flip: Tensor | None = None,
) -> tuple[Taps, Taps]:
    """Crop, flip and resize, along the axis of rows and along the axis of columns.

    The result equals torch's `interpolate(..., antialias=True)` of the crop. Sample i lies at
    start + length (i + 1/2) / S, the kernel is stretched by length / S where the crop shrinks, pixels outside the
    crop have no weight, and weights sum to 1.

    Args:
        start: (2, ...) top and left of the crops, in stored pixels; they need not be whole.
        length: (2, ...) height and width of the crops, at most the stored ones.
        stored: height and width of the stored images.
        size: the number of samples along each axis, S.
        kernel: the weight of a distance, elementwise on (2, ..., taps, S); zero from 2 on.
        flip: bool (...), the crops to mirror left to right.

    Returns:
        The taps of the rows and of the columns.
    """
    sample = torch.arange(0.5, size, device=start.device)
    if flip is not None:
        mirrored = torch.where(flip[..., None], size - sample, sample)
        sample = torch.stack([sample.expand_as(mirrored), mirrored])  # (2, ..., S)
    start, length = start[..., None], length[..., None]
    step = length / size
    centre = torch.addcmul(start, step, sample).sub_(0.5)  # (2, ..., S); pixel j lies at j
    taps = 2 * math.ceil(2 * max(1.0, max(stored) / size))
    first = centre.sub(taps / 2).floor_().add_(1)
    pixels = first[..., None, :] + torch.arange(taps, device=start.device)[:, None]  # (2, ..., taps, S)
    distances = (pixels - centre[..., None, :]).div_(step.clamp(min=1)[..., None]).abs_()
    start, length = start[..., None], length[..., None]
    weights = kernel(distances).mul_((pixels > start - 1) & (pixels < start + length))
    weights.div_(weights.sum(-2, keepdim=True))
    rows, columns = (Taps(w, p.clamp_(0, n - 1).long()) for w, p, n in zip(weights, pixels, stored, strict=True))
    return rows, columns


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur with reflected borders along one axis: (B, S, S), S = size, for sigma (B,) in pixels."""
    distance = torch.arange(2 * size - 1, device=sigma.device, dtype=sigma.dtype)
    g = torch.exp(-0.5 * (distance / sigma[:, None]).square_())  # (B, 2S-1), of distances 0 to 2 (S - 1)
    # Row i of g.unfold(1, S, 1) is g[i : i + S], a window that shares its memory.
    weights = torch.cat([g[:, 1:size].flip(1), g[:, :size]], 1).unfold(1, size, 1).flip(1)  # g[|i - j|]
    # The pixel at the edge is not repeated: pixel j appears again at -j and at 2 (S - 1) - j.
    weights[..., 1:] += g.unfold(1, size, 1)[..., 1:]
    weights[..., :-1] += g.flip(1).unfold(1, size, 1)[..., :-1]
    return weights.div_(weights.sum(-1, keepdim=True))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, H, S)^T @ images (B, C, H, W) @ columns (B, W, S) -> (B, C, S, S)."""
    b, c, h, w = images.shape
    across = torch.bmm(images.reshape(b, c * h, w), columns)  # (B, C*H, S)
    return torch.matmul(rows.mT[:, None], across.view(b, c, h, -1))
