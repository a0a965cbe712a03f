"""Random views of a batch of images, made on the images' device.

Crop, flip and resize are two matrix products per image (`resampling`), and colour jitter and normalisation are one
affine map per image (`colour`), so a view costs three batched products.

Shapes: V views, B images, C channels, (H, W) stored size of an image, S side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.views.colour import colour_basis, colour_matrices, luma_weights
from rankgap.views.resampling import KERNELS, Taps, bicubic, blur_matrix, crop_taps, separable
from rankgap.views.view_config import ViewConfig

__all__ = ["Parameters", "ViewConfig", "Views", "eval_view"]

_TRIES = 10  # crops to try before the central one is taken, as in torchvision
_BLOCK = 2**19  # values to process at once on a CPU


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


def _blur(views: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, S, S, C) with sigma (B,) pixels."""
    kernel = blur_matrix(sigma, views.shape[1])
    for _ in range(2):  # along one axis, and with the axes swapped along the other
        views = torch.bmm(kernel, views.flatten(2)).view_as(views).transpose(1, 2)
    return views


def _apply_(views: Tensor, drawn: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Apply an operation in place to the views drawn for it.

    An accelerator computes it for all views, because selecting some would wait for the device.
    """
    if views.device.type == "cpu":
        chosen = drawn.nonzero().squeeze(1)
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
        size: side S of a view, in pixels.
        mean: per-channel mean in [0, 1] to normalise with.
        std: per-channel standard deviation of values in [0, 1] to normalise with.

    Raises:
        UserError: mean and std differ in length, or a number is outside its range.

    Example:
        >>> views = Views([ViewConfig(), ViewConfig(blur_p=0.5)], size=32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> views(torch.zeros(4, 3, 40, 40, dtype=torch.uint8)).shape
        torch.Size([2, 4, 3, 32, 32])
    """

    ranges: Tensor
    chances: Tensor
    orientation: Tensor
    ratio: Tensor
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
        _check_normalisation(size, mean, std)
        self.configs, self.size = tuple(configs), size
        scale = torch.tensor(std, dtype=torch.float64)
        black = -torch.tensor(mean, dtype=torch.float64) / scale
        constants = {
            "ranges": torch.tensor([_ranges(c) for c in configs]).mT[..., None],  # (V, 2, 27, 1)
            "chances": torch.tensor([_chances(c) for c in configs])[..., None],  # (V, 5, 1)
            "orientation": torch.tensor([(c.vertical_flip, c.turn) for c in configs])[..., None],  # (V, 2, 1)
            "ratio": torch.tensor([c.ratio for c in configs])[..., None],  # (V, 2, 1)
            "luma": luma_weights(len(mean)),
            "basis": colour_basis(len(mean)),  # (4, C*C)
            "gain": 1 / (255 * scale)[:, None],  # (C, 1), from [0, 255] to normalised values
            "black": black[:, None],  # (C, 1)
            # One bound for each value of a row: a CPU clamps ten times slower if bounds repeat within a row.
            "low": black.repeat(size),  # (S*C,)
            "high": (black + 1 / scale).repeat(size),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.float(), persistent=False)

    def draw(self, height: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Parameters:
        """Draw the parameters of all views, with the distribution of torchvision's transforms on single images.

        `RandomResizedCrop` tries ten crops and takes the first that fits. Here the ten crops of all images and
        views are drawn at once.

        Args:
            height: float32 (B,), of the original images in pixels.
            width: float32 (B,), of the original images in pixels.
            generator: a generator on the device of `height`; the default generator if None.
        """
        low, high = self.ranges.unbind(1)
        numbers = low.shape[1]
        shape = len(self.configs), numbers + self.chances.shape[1], len(height)
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
        if not any(config.vertical_flip or config.turn for config in self.configs):
            return torch.zeros_like(like), torch.zeros_like(like, dtype=torch.int64)
        uniform = torch.rand((2, *like.shape), generator=generator, device=like.device)
        vertical_flip, turn = self.orientation.unbind(1)  # (V, 1)
        # Each third of [0, turn) is one, two or three quarter turns.
        thirds = (3 * uniform[1] / turn.clamp(min=1e-9)).clamp(max=3.0).long().clamp(max=2)
        return uniform[0] < vertical_flip, torch.where(uniform[1] < turn, 1 + thirds, 0)

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """V views of each image.

        Args:
            images: uint8 (B, C, H, W).
            sizes: (B, 2) height and width of each image before it was squashed to (H, W). Crops are drawn in those
                pixels, so that their aspect ratio is right. None if the stored size is the original one.
            generator: the only source of randomness, on the device of the images; the default generator if None.

        Returns:
            float32 (V, B, C, S, S), each view channels-last in memory.

        Raises:
            UserError: the images or sizes have another dtype or shape.
        """
        _check_images(images, sizes, len(self.luma))
        b, c, h, w = images.shape
        height, width = _original_sizes(images, sizes)
        out = images.new_empty(len(self.configs), b, self.size, self.size, c, dtype=torch.float32)
        # Small blocks stay in a CPU's caches and its allocator reuses them; an accelerator takes the whole batch.
        block = b if images.device.type != "cpu" else max(1, _BLOCK // max(c * h * w, out[0, 0].numel()))
        with torch.autocast(images.device.type, enabled=False):  # half precision would band the colours
            p = self.draw(height, width, generator)
            scale = torch.stack([h / height, w / width])[:, None]  # (2, 1, B), stored pixels per original pixel
            corner, extent = torch.stack([p.top, p.left]) * scale, torch.stack([p.height, p.width]) * scale
            rows, columns = crop_taps(corner, extent, (h, w), self.size, self._kernel, p.flip)
            gain = p.brightness * p.contrast
            colours = colour_matrices(self.basis, self.luma, gain, p.saturation, p.hue, p.grey) * self.gain
            lift = p.brightness - gain  # (V, B), the share of the mean grey that contrast adds
            for part in (slice(start, start + block) for start in range(0, b, block)):
                pixels = images[part].to(torch.float32, memory_format=torch.contiguous_format)
                for v, config in enumerate(self.configs):
                    at = v, part
                    self._render_(
                        out[at],
                        pixels,
                        Taps(rows.weights[at], rows.pixels[at]).matrices(h),
                        Taps(columns.weights[at], columns.pixels[at]).matrices(w),
                        colours[at],
                        lift[at],
                    )
                    if config.blur_p > 0:
                        _apply_(out[at], p.blur[at], _blur, p.sigma[at])
                    if config.solarize_p > 0:
                        _apply_(out[at], p.solarize[at], self._solarize)
                    if config.vertical_flip > 0:
                        _apply_(out[at], p.vertical_flip[at], partial(torch.flip, dims=(1,)))
                    for k in (1, 2, 3) if config.turn > 0 else ():
                        _apply_(out[at], p.quarters[at] == k, partial(torch.rot90, k=k, dims=(1, 2)))
        return out.permute(0, 1, 4, 2, 3)

    def _kernel(self, distances: Tensor) -> Tensor:
        """The kernel of each view on distances (2, V, ...)."""
        kinds = {config.interpolation for config in self.configs}
        if len(kinds) == 1:
            return KERNELS[kinds.pop()](distances)
        each = zip(self.configs, distances.unbind(1), strict=True)
        return torch.stack([KERNELS[config.interpolation](d) for config, d in each], 1)

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
        view.clamp_(self.low, self.high)

    def _solarize(self, views: Tensor) -> Tensor:
        """Invert the values of 0.5 or more in normalised views (B, S, S, C)."""
        middle = ((self.low + self.high) / 2).view(self.size, -1)
        return middle - (views - middle).abs_()


def eval_view(
    images: Tensor, sizes: Tensor | None, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The one view from which features are read: the largest central square, resized and normalised.

    The resize is bicubic, and antialiased where it shrinks (Keys's kernel, as in PIL). At H = W = S the pixels are
    those of the image.

    Args:
        images: uint8 (B, C, H, W).
        sizes: (B, 2) original height and width, or None (see `Views.forward`).
        size: side S of the view, in pixels.
        mean: per-channel mean in [0, 1] to normalise with.
        std: per-channel standard deviation of values in [0, 1] to normalise with.

    Returns:
        float32 (B, C, S, S)

    Raises:
        UserError: the images or sizes have another dtype or shape, or a number is outside its range.
    """
    _check_normalisation(size, mean, std)
    _check_images(images, sizes, len(mean))
    h, w = images.shape[-2:]
    height, width = _original_sizes(images, sizes)
    side = torch.minimum(height, width)
    corner = torch.stack([(height - side) / 2, (width - side) / 2]).floor_()
    scale = torch.stack([h / height, w / width])
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = crop_taps(corner * scale, side * scale, (h, w), size, bicubic)
        view = separable(images.float(), rows.matrices(h), columns.matrices(w)).div_(255).clamp_(0, 1)
        mean_, std_ = torch.tensor([mean, std], device=images.device)[:, :, None, None].unbind()
        return view.sub_(mean_).div_(std_)


def _original_sizes(images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Original height and width, (B,) float32, on the images' device."""
    if sizes is None:
        b, _, h, w = images.shape
        return torch.full((b,), float(h), device=images.device), torch.full((b,), float(w), device=images.device)
    height, width = sizes.to(images.device, torch.float32, non_blocking=True).unbind(1)
    return height, width


def _check_normalisation(size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if size < 1:
        raise UserError(f"expected a view size of 1 pixel or more, got {size}")
    if len(mean) != len(std) or not mean or not all(s > 0 for s in std):
        raise UserError(
            f"expected mean and std with one number per channel, std above 0, got {list(mean)} and {list(std)}"
        )


def _check_images(images: Tensor, sizes: Tensor | None, channels: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        raise UserError(f"expected uint8 images (B, {channels}, H, W), got {images.dtype} {tuple(images.shape)}")
    if sizes is not None and tuple(sizes.shape) != (len(images), 2):
        raise UserError(
            f"expected sizes ({len(images)}, 2), height and width of each image, got {tuple(sizes.shape)}"
        )
