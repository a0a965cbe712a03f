"""Crops, resizing and blur as matrix products.

Each of them is linear and separable, so it is one small matrix per image and axis: rows (S, H) @ image (H, W) @
columns (W, S), with any interpolation and with antialiasing. Reading neighbour by neighbour (`grid_sample`) takes
three to six times as long at 32 pixels, takes about as long at 224 with bicubic, and reads pixels outside the
crop.

Shapes: B images, C channels, (H, W) size of an image, S side of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_TILED = 64  # side of a result in pixels; below this, whole matrices are as fast
_TILE = 32  # samples


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


def blur_taps(sigma: Tensor, size: int, radius: int) -> Taps:
    """Gaussian blur with reflected borders along one axis, cut off at a radius.

    Args:
        sigma: (B,) in pixels.
        size: S.
        radius: in pixels; beyond four times sigma there is less than 1e-4 of the weight.
    """
    radius = min(radius, size - 1)
    distance = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]).square())  # (B, taps)
    weights = weights / weights.sum(1, keepdim=True)
    # The pixel at the edge is not repeated: pixel j appears again at -j and at 2 (S - 1) - j.
    pixels = (torch.arange(size, device=sigma.device) + distance[:, None]).abs()
    pixels = torch.minimum(pixels, 2 * (size - 1) - pixels)  # (taps, S)
    shape = len(sigma), *pixels.shape
    return Taps(weights[..., None].expand(shape), pixels.expand(shape))


def uses_tiles(images: Tensor, size: int) -> bool:
    """Whether `separable` works by tiles: on a CPU, for results of 64 pixels or more."""
    return images.device.type == "cpu" and size >= _TILED


def separable(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Resample the rows and columns of float32 images (B, C, H, W) -> (B, C, S, S).

    A sample depends on a few neighbouring pixels, so most of a whole matrix is zero. On a CPU, large results are
    computed tile by tile, from the pixels that they depend on; an accelerator multiplies whole matrices faster.
    """
    b, c, h, w = images.shape
    if uses_tiles(images, rows.weights.shape[-1]):
        return _by_tiles(images, rows, columns)
    across = torch.bmm(images.reshape(b, c * h, w), columns.matrices(w))  # (B, C*H, S)
    return torch.matmul(rows.matrices(h).mT[:, None], across.view(b, c, h, -1))


def _by_tiles(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    b, c, h, w = images.shape
    size = rows.weights.shape[-1]
    across, out = images.new_empty(b, c, size, w), images.new_empty(b, c, size, size)
    for k, tiles in enumerate(_tiles(rows, h)):
        for place, window, weights in tiles:
            for plane in range(c):
                torch.mm(weights.T, images[k, plane, window], out=across[k, plane, place])
    for k, tiles in enumerate(_tiles(columns, w)):
        flat, made = across[k].view(c * size, w), out[k].view(c * size, size)
        for place, window, weights in tiles:
            torch.mm(flat[:, window], weights, out=made[:, place])
    return out


def _tiles(taps: Taps, stored: int) -> Iterator[list[tuple[slice, slice, Tensor]]]:
    """For each image, its tiles: samples, the window of pixels that they depend on, and weights (window, samples).

    Args:
        taps: (B, taps, S).
        stored: the number of pixels along the axis.
    """
    size = taps.weights.shape[-1]
    count = math.ceil(size / _TILE)
    side = math.ceil(size / count)
    rest = count * side - size  # samples that fill the last tile, without weight
    weights, pixels = F.pad(taps.weights, (0, rest)), F.pad(taps.pixels.double(), (0, rest), "replicate").long()
    weights, pixels = (x.unflatten(-1, (count, side)).transpose(1, 2) for x in (weights, pixels))
    first, last = pixels.amin((2, 3)), pixels.amax((2, 3))  # (B, tiles)
    length = int((last - first).max()) + 1
    first = first.clamp(max=stored - length)
    dense = weights.new_zeros(*first.shape, length, side)
    dense.scatter_add_(2, pixels - first[..., None, None], weights)
    for starts, each in zip(first.tolist(), dense, strict=True):
        yield [
            (
                slice(i * side, min((i + 1) * side, size)),
                slice(start, start + length),
                each[i, :, : min(side, size - i * side)],
            )
            for i, start in enumerate(starts)
        ]
