"""Random views of a batch of images, made on the images' device.

Crop, flip and resize are two matrix products per image (`resampling`), and colour jitter and normalisation are one
affine map per image (`colour`), so a view costs three batched products.

Shapes: V views, B images, C channels, (H, W) stored size of an image, S side of a view.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.views.colour import colour_basis, colour_matrices, luma_weights
from rankgap.views.eval_view import check_images, check_normalisation, original_sizes
from rankgap.views.parameters import Draw, Parameters
from rankgap.views.resampling import KERNELS, Taps, blur_matrix, blur_taps, crop_taps, separable, uses_tiles
from rankgap.views.view_config import ViewConfig

_BLOCK = 2**19  # values to process at once on a CPU
_BLUR_RADIUS = 4  # standard deviations


class _Run(NamedTuple):
    """Consecutive views of one size.

    Attributes:
        size: side of these views in pixels.
        views: which views they are.
        kernel: the interpolation kernel of each, on distances (2, views, ...).
    """

    size: int
    views: slice
    kernel: Callable[[Tensor], Tensor]

    @property
    def numbered(self) -> Iterator[tuple[int, int]]:
        """Each view's place in the run, and its number among all views."""
        return enumerate(range(self.views.start, self.views.stop))


class _Tones(NamedTuple):
    """The colour maps of all views: y = matrices x + lift of the mean grey.

    Attributes:
        matrices: (V, B, C, C), to normalised values.
        lift: (V, B), the share of the mean grey that contrast adds.
    """

    matrices: Tensor
    lift: Tensor


def _runs(configs: Sequence[ViewConfig], sizes: Sequence[int]) -> Iterator[_Run]:
    start = 0
    for size, run in itertools.groupby(sizes):
        stop = start + len(list(run))
        yield _Run(size, slice(start, stop), partial(_kernel, configs[start:stop]))
        start = stop


def _kernel(configs: Sequence[ViewConfig], distances: Tensor) -> Tensor:
    """The kernel of each view on distances (2, V, ...)."""
    kinds = {config.interpolation for config in configs}
    if len(kinds) == 1:
        return KERNELS[kinds.pop()](distances)
    each = zip(configs, distances.unbind(1), strict=True)
    return torch.stack([KERNELS[config.interpolation](d) for config, d in each], 1)


def _blur(views: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, S, S, C) with sigma (B,) pixels."""
    kernel = blur_matrix(sigma, views.shape[1])
    for _ in range(2):  # along one axis, and with the axes swapped along the other
        views = torch.bmm(kernel, views.flatten(2)).view_as(views).transpose(1, 2)
    return views


def _blur_planes(planes: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of (B, C, S, S) with sigma (B,) pixels, cut off at a radius."""
    taps = blur_taps(sigma, planes.shape[-1], radius)
    return separable(planes, taps, taps)


def _apply_(views: Tensor, drawn: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Apply an operation in place to the views drawn for it.

    An accelerator computes it for all views, because selecting some would wait for the device.
    """
    if views.device.type == "cpu":
        chosen = drawn.nonzero().squeeze(1)
        if len(chosen) == len(views):
            views.copy_(operation(views, *parameters))
        elif len(chosen):
            changed = operation(views[chosen], *(p[chosen] for p in parameters))
            views.index_copy_(0, chosen, changed.contiguous())
    else:
        views.copy_(torch.where(drawn[:, None, None, None], operation(views, *parameters), views))


class Views(nn.Module):
    """Several random views of each image of a batch, normalised.

    A view is cropped, flipped and resized, jittered in colour, made grey, blurred and solarised, in this order and
    with torchvision's probabilities and parameters (`ViewConfig`). Finally, it may be flipped vertically and
    rotated by quarter turns, without resampling. The pixels differ from those of torchvision on PIL images in
    three ways (tests bound the mean difference):

    * the four jitters come in the order brightness, contrast, saturation, hue, which torchvision shuffles;
    * hue is a rotation of RGB about the grey axis, while torchvision shifts it in HSV (see `colour`);
    * values are clamped to [0, 1] once, after the last colour operation, and never rounded to integers.

    Images that do not have three channels have no hue, saturation or grey. Those three then change nothing, and
    the mean that contrast keeps is taken over all channels.

    Args:
        configs: one for each of the V views.
        size: side in pixels of each view whose own size is None.
        mean: per-channel mean in [0, 1] to normalise with.
        std: per-channel standard deviation of values in [0, 1] to normalise with.

    Raises:
        UserError: mean and std differ in length, or a number is outside its range.

    Example:
        >>> views = Views([ViewConfig(), ViewConfig(blur_p=0.5)], size=32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> views(torch.zeros(4, 3, 40, 40, dtype=torch.uint8)).shape
        torch.Size([2, 4, 3, 32, 32])
    """

    luma: Tensor
    basis: Tensor
    gain: Tensor
    black: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, configs: Sequence[ViewConfig], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        check_normalisation(size, mean, std)
        self.configs = tuple(configs)
        self.sizes = tuple(config.size or size for config in configs)
        self.draw = Draw(configs)
        self._runs = tuple(_runs(self.configs, self.sizes))
        scale = torch.tensor(std, dtype=torch.float64)
        black = -torch.tensor(mean, dtype=torch.float64) / scale
        constants = {
            "luma": luma_weights(len(mean)),
            "basis": colour_basis(len(mean)),  # (4, C*C)
            "gain": 1 / (255 * scale)[:, None],  # (C, 1), from [0, 255] to normalised values
            "black": black[:, None],  # (C, 1)
            "low": black,  # (C,)
            "high": black + 1 / scale,
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.float(), persistent=False)

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """V views of each image.

        Args:
            images: uint8 (B, C, H, W).
            sizes: (B, 2) height and width of each image before it was squashed to (H, W). Crops are drawn in those
                pixels, so that their aspect ratio is right. None if the stored size is the original one.
            generator: the only source of randomness, on the device of the images; the default generator if None.

        Returns:
            float32 (V, B, C, S, S), each view channels-last in memory; a list of V views if their sizes differ.

        Raises:
            UserError: the images or sizes have another dtype or shape.
        """
        check_images(images, sizes, len(self.luma))
        h, w = images.shape[-2:]
        height, width = original_sizes(images, sizes)
        with torch.autocast(images.device.type, enabled=False):  # half precision would band the colours
            p = self.draw(height, width, generator)
            scale = torch.stack([h / height, w / width])[:, None]  # (2, 1, B), stored pixels per original pixel
            corner, extent = torch.stack([p.top, p.left]) * scale, torch.stack([p.height, p.width]) * scale
            taps = []
            for size, views, kernel in self._runs:
                taps.append(crop_taps(corner[:, views], extent[:, views], (h, w), size, kernel, p.flip[views]))
            tones, out = self._tones(p), self._empty(images)
            for part in self._blocks(images):
                pixels = images[part].to(torch.float32, memory_format=torch.contiguous_format)
                for run, made, (rows, columns) in zip(self._runs, out, taps, strict=True):
                    for k, v in run.numbered:
                        down = Taps(rows.weights[k, part], rows.pixels[k, part])
                        over = Taps(columns.weights[k, part], columns.pixels[k, part])
                        colours, lift = tones.matrices[v, part], tones.lift[v, part]
                        view = made[k, part]
                        if uses_tiles(pixels, run.size):
                            self._colour_(view, separable(pixels, down, over), colours, lift, v, part, p)
                        else:
                            self._render_(view, pixels, down.matrices(h), over.matrices(w), colours, lift)
                            if self.configs[v].blur_p > 0:
                                _apply_(view, p.blur[v, part], _blur, p.sigma[v, part])
                        self._finish_(view, v, part, p)
        return _as_views(out)

    def finish(self, crops: Sequence[Tensor], parameters: Parameters) -> Tensor | list[Tensor]:
        """The views of crops that have been cut and resized elsewhere, such as while their images were decoded.

        Args:
            crops: V tensors, uint8 (B, C, S, S): the crops that `parameters` name, at each view's size.
            parameters: what `draw` gave, on the device of the crops.

        Returns:
            What `forward` returns.

        Raises:
            UserError: the crops have another number, dtype or shape.
        """
        c = len(self.luma)
        if len(crops) != len(self.configs):
            raise UserError(f"expected crops of {len(self.configs)} views, got {len(crops)}")
        for crop, size in zip(crops, self.sizes, strict=True):
            if crop.dtype != torch.uint8 or crop.ndim != 4 or tuple(crop.shape[1:]) != (c, size, size):
                raise UserError(
                    f"expected uint8 crops (B, {c}, {size}, {size}), got {crop.dtype} {tuple(crop.shape)}"
                )
        with torch.autocast(crops[0].device.type, enabled=False):
            tones, out = self._tones(parameters), self._empty(crops[0])
            for part in self._blocks(crops[0]):
                for run, made in zip(self._runs, out, strict=True):
                    for k, v in run.numbered:
                        crop, flip = crops[v][part], parameters.flip[v, part]
                        mirrored = torch.where(flip[:, None, None, None], crop.flip(-1), crop)
                        planes = mirrored.to(torch.float32, memory_format=torch.contiguous_format)
                        colours, lift = tones.matrices[v, part], tones.lift[v, part]
                        self._colour_(made[k, part], planes, colours, lift, v, part, parameters)
                        self._finish_(made[k, part], v, part, parameters)
        return _as_views(out)

    def _tones(self, p: Parameters) -> _Tones:
        gain = p.brightness * p.contrast
        matrices = colour_matrices(self.basis, self.luma, gain, p.saturation, p.hue, p.grey) * self.gain
        return _Tones(matrices, p.brightness - gain)

    def _empty(self, images: Tensor) -> list[Tensor]:
        """Room for the views of each run, (V', B, S, S, C)."""
        b, c = images.shape[:2]
        return [
            images.new_empty(views.stop - views.start, b, size, size, c, dtype=torch.float32)
            for size, views, _ in self._runs
        ]

    def _blocks(self, images: Tensor) -> Iterator[slice]:
        """Blocks that stay in a CPU's caches and whose memory is reused; an accelerator takes the whole batch."""
        b, c, h, w = images.shape
        largest = max(h * w, max(self.sizes) ** 2) * c
        block = b if images.device.type != "cpu" else max(1, _BLOCK // largest)
        return (slice(start, start + block) for start in range(0, b, block))

    def _render_(
        self, view: Tensor, pixels: Tensor, rows: Tensor, columns: Tensor, colours: Tensor, lift: Tensor
    ) -> None:
        """Write rows^T @ colours(pixels @ columns), clamped, into `view` (B, S, S, C)."""
        b, c, h, w = pixels.shape
        across = torch.bmm(pixels.view(b, c * h, w), columns).view(b, c, h, -1)
        mean = torch.bmm(across.mean(-1), rows.mean(2, keepdim=True))  # (B, C, 1), of the crop before the jitter
        shift = torch.addcmul(self.black, self.gain, (lift * (self.luma @ mean).squeeze(1))[:, None, None])
        coloured = torch.baddbmm(shift, colours, across.flatten(2))  # (B, C, H*S)
        view = view.flatten(2)
        # The product with `rows` comes last, because it works with the channels in any layout.
        torch.bmm(rows.mT, coloured.mT.reshape(b, h, -1), out=view)
        self._clamp_(view)

    def _colour_(
        self, view: Tensor, planes: Tensor, colours: Tensor, lift: Tensor, v: int, part: slice, p: Parameters
    ) -> None:
        """Write blur(clamp(colours(planes))) into `view` (B, S, S, C), from planes (B, C, S, S) in [0, 255]."""
        flat = planes.flatten(2)
        mean = flat.mean(-1) @ self.luma  # (B,), of the crop before the jitter
        shift = torch.addcmul(self.black, self.gain, (lift * mean)[:, None, None])  # (B, C, 1)
        coloured = torch.baddbmm(shift, colours, flat).view_as(planes)
        for plane, low, high in zip(coloured.unbind(1), self.low, self.high, strict=True):
            plane.clamp_(low, high)
        config = self.configs[v]
        if config.blur_p > 0:
            radius = math.ceil(_BLUR_RADIUS * config.blur_sigma[1])
            _apply_(coloured, p.blur[v, part], partial(_blur_planes, radius=radius), p.sigma[v, part])
        view.copy_(coloured.permute(0, 2, 3, 1))

    def _clamp_(self, rows: Tensor) -> None:
        """Clamp (B, S, S*C) to black and white."""
        # One bound for each value of a row: a CPU clamps ten times slower if bounds repeat within a row.
        size = rows.shape[1]
        rows.clamp_(self.low.repeat(size), self.high.repeat(size))

    def _finish_(self, view: Tensor, v: int, part: slice, p: Parameters) -> None:
        """What follows colours and blur, in place, on images `part` of view v (B, S, S, C)."""
        config = self.configs[v]
        if config.solarize_p > 0:
            _apply_(view, p.solarize[v, part], self._solarize)
        if config.vertical_flip > 0:
            _apply_(view, p.vertical_flip[v, part], partial(torch.flip, dims=(1,)))
        for k in (1, 2, 3) if config.turn > 0 else ():
            _apply_(view, p.quarters[v, part] == k, partial(torch.rot90, k=k, dims=(1, 2)))

    def _solarize(self, views: Tensor) -> Tensor:
        """Invert the values of 0.5 or more in normalised views (B, S, S, C)."""
        middle = ((self.low + self.high) / 2).repeat(views.shape[1]).view(views.shape[1], -1)
        return middle - (views - middle).abs_()


def _as_views(runs: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Views (V, B, S, S, C) as (V, B, C, S, S), or as a list of views if their sizes differ."""
    made = [run.permute(0, 1, 4, 2, 3) for run in runs]
    return made[0] if len(made) == 1 else [view for run in made for view in run]
