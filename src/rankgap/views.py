"""Random views of a batch of images, made on the images' device.

Every step that is linear in space (crop, flip, resize, blur) is one small matrix per image and axis, and a view
is two batched matrix products: rows (S, H) times image (H, W) times columns (W, S). Every step that is affine in
colour is one C x C matrix and an offset per image, with the normalisation folded in. So a view costs three
products, at any interpolation; `grid_sample` would read 16 neighbours of each bicubic pixel instead, and its
pixels would reach outside the crop.

Shapes: V views, B images, C channels, (H, W) stored size of an image, S side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rankgap.errors import UserError, unknown

Interpolation = Literal["bicubic", "bilinear"]
_TRIES = 10  # crops tried before the central one is taken, as in torchvision
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: grey as PIL and YIQ define it
_BLOCK = 2**23  # values handled at once on a CPU
_DRAWS = 2 * _TRIES + 12  # uniforms per image


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """How one view is drawn; names and meanings are torchvision's.

    Args:
        scale: area of the crop, least and greatest share of the image's area, in (0, 1].
        ratio: width / height of the crop, least and greatest; drawn uniformly in its logarithm.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation (factor in [max(0, 1 - s), 1 + s]) and hue (shift in
            [-s, s] turns, s at most 0.5).
        jitter_p: probability that all four are jittered, else none.
        grey_p: probability of greyscale.
        blur_p: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the view, least and greatest.
        solarize_p: probability that values of 0.5 or more are inverted.
        interpolation: of the resized crop.

    Raises:
        UserError: a value is out of its range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale takes (least, greatest) with 0 < least <= greatest <= 1, got {self.scale}")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UserError(f"{name} takes (least, greatest) with 0 < least <= greatest, got {(low, high)}")
        for name in ("flip", "jitter_p", "grey_p", "blur_p", "solarize_p"):
            if not 0 <= (p := getattr(self, name)) <= 1:
                raise UserError(f"{name} is a probability in [0, 1], got {p}")
        if not (all(0 <= s < math.inf for s in self.jitter[:3]) and 0 <= self.jitter[3] <= 0.5):
            raise UserError(
                f"jitter takes brightness, contrast, saturation >= 0 and hue in [0, 0.5], got {self.jitter}"
            )
        if self.interpolation not in _KERNELS:
            raise unknown("interpolation", self.interpolation, _KERNELS)


class Parameters(NamedTuple):
    """What is drawn for one view of each image; all (B,). Crops are in pixels of the original image."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor


def draw(
    config: ViewConfig, height: Tensor, width: Tensor, generator: torch.Generator | None = None
) -> Parameters:
    """Parameters of one view of each image, distributed as torchvision draws them one image at a time.

    `RandomResizedCrop` tries ten crops and takes the first that fits, else the largest central one that keeps the
    ratio; here the ten tries of all images are drawn at once. Where an image is not jittered its factors are 1
    and its hue shift is 0.

    Args:
        config: of the view.
        height: float32 (B,), of the original images in pixels.
        width: likewise.
        generator: on the device of `height`; the default generator otherwise.
    """
    u = torch.rand(_DRAWS, len(height), generator=generator, device=height.device)  # one draw: one kernel
    singles = u[2 * _TRIES :].unbind()
    on = singles[0] < config.jitter_p
    factors = [
        torch.where(on, _between(max(0.0, 1 - strength), 1 + strength, x), 1.0)
        for strength, x in zip(config.jitter[:3], singles[1:4], strict=True)
    ]
    top, left, h, w = _draw_crop(config, height, width, u[:_TRIES], u[_TRIES : 2 * _TRIES], *singles[10:12])
    return Parameters(
        top,
        left,
        h,
        w,
        singles[4] < config.flip,
        *factors,
        torch.where(on, _between(-config.jitter[3], config.jitter[3], singles[5]), 0.0),
        singles[6] < config.grey_p,
        singles[7] < config.blur_p,
        _between(*config.blur_sigma, singles[8]),
        singles[9] < config.solarize_p,
    )


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return u * (high - low) + low


def _draw_crop(
    config: ViewConfig, height: Tensor, width: Tensor, areas: Tensor, ratios: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of the crops from uniforms: areas and ratios (10, B), y and x (B,)."""
    least, greatest = config.ratio
    area = _between(*config.scale, areas) * (height * width)
    ratio = _between(math.log(least), math.log(greatest), ratios).exp_()
    widths, heights = (area * ratio).sqrt_().round_(), (area / ratio).sqrt_().round_()  # (10, B)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    found, first = fits.byte().max(0, keepdim=True)  # the first of equal maxima: the first that fits
    central_width = torch.where(width > height * greatest, (height * greatest).round_(), width)
    central_height = torch.where(width < height * least, (width / least).round_(), height)
    w = torch.where(found[0] > 0, widths.gather(0, first)[0], central_width)
    h = torch.where(found[0] > 0, heights.gather(0, first)[0], central_height)
    free_y, free_x = height - h, width - w
    top = torch.where(found[0] > 0, torch.minimum((y * (free_y + 1)).floor_(), free_y), (free_y / 2).floor_())
    left = torch.where(found[0] > 0, torch.minimum((x * (free_x + 1)).floor_(), free_x), (free_x / 2).floor_())
    return top, left, h, w


def _bilinear(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).relu_()


def _bicubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2 (as PIL, and as torch with antialias), times two: rows are normalised later.

    In truncated powers q = max(2 - d, 0), p = max(1 - d, 0) it is q^2 (q - 1) / 2 + p^2 (1 - 2 p): no branches.
    """
    q = distance.neg_().add_(2).relu_()
    below = q - 1
    p = below.relu()
    return q.square_().mul_(below).addcmul_(p.square(), p.mul(-4).add_(2))


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "bilinear": _bilinear}


def axis_matrix(
    start: Tensor, length: Tensor, stored: int, size: int, interpolation: Interpolation, flip: Tensor | None = None
) -> Tensor:
    """Crop, flip and resize along one axis, as matrices to multiply pixels with.

    Equal to torch's `interpolate(..., antialias=True)` of the crop: sample i lies at start + length (i + 1/2) / S,
    the kernel is stretched by length / S where that shrinks, pixels outside the crop weigh nothing, and each row
    sums to 1.

    Args:
        start: (B,) first pixel of the crop; need not be whole.
        length: (B,) its length in pixels.
        stored: pixels of the axis.
        size: samples to take, S.
        interpolation: the kernel.
        flip: bool (B,), which axes to reverse.

    Returns:
        (B, size, stored)
    """
    sample = torch.arange(size, device=start.device, dtype=start.dtype).add_(0.5).expand(len(start), size)
    if flip is not None:
        sample = torch.where(flip[:, None], size - sample, sample)
    pixel = torch.arange(stored, device=start.device, dtype=start.dtype)
    step = (length / size)[:, None]
    stretch = step.clamp(min=1)
    centre = (start[:, None] + step * sample).div_(stretch)
    weights = (centre[:, :, None] - ((pixel + 0.5) / stretch)[:, None, :]).abs_()
    weights = _KERNELS[interpolation](weights)
    inside = (pixel + 1 > start[:, None]) & (pixel < (start + length)[:, None])
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(-1, keepdim=True))


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


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, S, H) @ images (B, C, H, W) @ columns (B, S, W)^T -> (B, C, S, S)."""
    b, c, h, w = images.shape
    across = torch.bmm(images.reshape(b, c * h, w), columns.mT)  # (B, C*H, S)
    return torch.matmul(rows[:, None], across.view(b, c, h, -1))


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    kernel = blur_matrix(sigma, images.shape[-1])
    return _separable(images, kernel, kernel)


def _on_drawn(images: Tensor, drawn: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """The operation on the images drawn. A CPU leaves the others out; elsewhere picking them would wait for it."""
    if images.device.type == "cpu":
        chosen = drawn.nonzero().squeeze(1)
        return images.index_copy_(0, chosen, operation(images[chosen], *(p[chosen] for p in parameters)))
    return torch.where(drawn[:, None, None, None], operation(images, *parameters), images)


def _colour_basis(channels: int) -> tuple[Tensor, Tensor]:
    """Luma weights (C,) and the three matrices (3, C, C) that every colour matrix is a sum of, in float64.

    For three channels: to grey, G = 1 luma^T; to chroma, I - G; a turn of a quarter in the chroma plane of YIQ.
    Other channels have no chroma: their matrices are I, 0, 0, and luma is their mean.
    """
    identity = torch.eye(channels, dtype=torch.float64)
    if channels != 3:
        return identity.mean(0), torch.stack([identity, 0 * identity, 0 * identity])
    yiq = torch.tensor([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
    # Hue grows from red to green, against the sense of (I, Q).
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    grey = yiq[0].expand(3, 3)
    return yiq[0], torch.stack([grey, identity - grey, torch.linalg.inv(yiq) @ turn @ yiq])


class Views(nn.Module):
    """Several random views of each image of a batch, normalised.

    A view is cropped, flipped and resized, jittered in colour, made grey, blurred and solarised, in this order and
    with probabilities and parameters as in torchvision (`ViewConfig`, `draw`). Where the pixels differ from
    torchvision's on PIL images (tests bound the mean difference):

    * the four jitters come in the order brightness, contrast, saturation, hue, where torchvision shuffles them. So
      all of them and grey are one affine map, x -> b c (G + s (cos t (I - G) + sin t Q)) x + (1 - c) b m, with
      factors b, c, s, hue shift t, projection on grey G, quarter turn of chroma Q, and the crop's mean grey m;
    * hue is rotated in YIQ, where torchvision rotates in HSV: luma is kept in place of the largest channel;
    * values are clamped to [0, 1] once, after the last colour operation, and never rounded to integers.

    Images of other than three channels have no hue, saturation or grey: those three change nothing, and the mean
    that contrast keeps is taken over all channels.

    Args:
        configs: one for each of the V views.
        size: side S of a view, in pixels.
        mean: of each channel in [0, 1], to normalise with.
        std: standard deviation of each channel, likewise.

    Raises:
        UserError: mean and std differ in length, or a number is out of its range.

    Example:
        >>> views = Views([ViewConfig(), ViewConfig(blur_p=0.5)], size=32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> views(torch.zeros(4, 3, 40, 40, dtype=torch.uint8)).shape
        torch.Size([2, 4, 3, 32, 32])
    """

    luma: Tensor
    basis: Tensor
    gain: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, configs: Sequence[ViewConfig], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        _check_normalisation(size, mean, std)
        self.configs, self.size = tuple(configs), size
        luma, basis = _colour_basis(len(mean))
        scale = torch.tensor(std, dtype=torch.float64)[:, None]  # (C, 1)
        black = -torch.tensor(mean, dtype=torch.float64)[:, None] / scale
        white = black + 1 / scale
        plane = torch.ones(size * size, dtype=torch.float64)
        for name, constant in {
            "luma": luma,
            "basis": (basis / (255 * scale)).flatten(1),  # from [0, 255] to normalised values
            "gain": 1 / (255 * scale.T),
            "shift": black.T,
            # As large as a view: clamping with bounds that broadcast within an image is ten times slower on a CPU.
            "low": (black * plane).view(-1, size, size),
            "high": (white * plane).view(-1, size, size),
        }.items():
            self.register_buffer(name, constant.float(), persistent=False)

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """V views of each image.

        Args:
            images: uint8 (B, C, H, W).
            sizes: (B, 2) height and width of each image before it was squashed to (H, W): crops are drawn in those
                pixels, so that their aspect ratio is right. None where the stored size is the original one.
            generator: the only source of randomness, on the device of the images; the default one otherwise.

        Returns:
            float32 (V, B, C, S, S), each view channels-last in memory.

        Raises:
            UserError: images or sizes of another dtype or shape.
        """
        _check_images(images, sizes, len(self.luma))
        b, c, h, w = images.shape
        height, width = _original_sizes(images, sizes)
        out = images.new_empty(len(self.configs), b, self.size, self.size, c, dtype=torch.float32)
        drawn = [draw(config, height, width, generator) for config in self.configs]
        # A CPU's caches and allocator want small blocks; an accelerator wants the whole batch.
        block = b if images.device.type != "cpu" else max(1, _BLOCK // max(images[:1].numel(), out[0, :1].numel()))
        with torch.autocast(images.device.type, enabled=False):  # half precision would band the colours
            for start in range(0, b, block):
                part = slice(start, start + block)
                pixels, y, x = images[part].float(), h / height[part], w / width[part]
                for config, whole, view in zip(self.configs, drawn, out, strict=True):
                    p = Parameters(*(parameter[part] for parameter in whole))
                    rows = axis_matrix(p.top * y, p.height * y, h, self.size, config.interpolation)
                    columns = axis_matrix(p.left * x, p.width * x, w, self.size, config.interpolation, p.flip)
                    crops = _separable(pixels, rows, columns)
                    view[part].copy_(self._recolour(crops, p, config).permute(0, 2, 3, 1))
        return out.permute(0, 1, 4, 2, 3)

    def _recolour(self, crops: Tensor, p: Parameters, config: ViewConfig) -> Tensor:
        """Crops (B, C, S, S) in [0, 255] -> jittered, blurred, solarised, normalised."""
        gain = p.brightness * p.contrast
        chroma = gain * torch.where(p.grey, 0.0, p.saturation)
        angle = 2 * math.pi * p.hue
        mixture = torch.stack([gain, chroma * angle.cos(), chroma * angle.sin()], 1)
        grey = p.brightness * (1 - p.contrast) * (crops.mean((2, 3)) @ self.luma)
        view = torch.baddbmm(
            torch.addcmul(self.shift, grey[:, None], self.gain)[:, :, None],
            (mixture @ self.basis).view(-1, *2 * crops.shape[1:2]),
            crops.flatten(2),
        ).view_as(crops)
        # Normalising keeps each channel's order and averages: what follows needs no way back to [0, 1].
        view.clamp_(self.low, self.high)
        if config.blur_p > 0:
            view = _on_drawn(view, p.blur, _blur, p.sigma)
        if config.solarize_p > 0:
            middle = (self.low + self.high) / 2
            view = _on_drawn(view, p.solarize, lambda v: middle - (v - middle).abs_())
        return view


def eval_view(
    images: Tensor, sizes: Tensor | None, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The one view that features are read from: the largest central square, resized and normalised.

    Bicubic, antialiased where it shrinks (Keys's kernel, as PIL); at H = W = S the pixels are the image's.

    Args:
        images: uint8 (B, C, H, W).
        sizes: (B, 2) original height and width, or None (see `Views.forward`).
        size: side S of the view, in pixels.
        mean: of each channel in [0, 1].
        std: of each channel, likewise.

    Returns:
        float32 (B, C, S, S)

    Raises:
        UserError: images or sizes of another dtype or shape, or numbers out of their range.
    """
    _check_normalisation(size, mean, std)
    _check_images(images, sizes, len(mean))
    h, w = images.shape[-2:]
    height, width = _original_sizes(images, sizes)
    side = torch.minimum(height, width)
    y, x = h / height, w / width
    with torch.autocast(images.device.type, enabled=False):
        rows = axis_matrix(((height - side) / 2).floor_() * y, side * y, h, size, "bicubic")
        columns = axis_matrix(((width - side) / 2).floor_() * x, side * x, w, size, "bicubic")
        view = _separable(images.float(), rows, columns).div_(255).clamp_(0, 1)
        mean_, std_ = torch.tensor([mean, std], device=images.device)[:, :, None, None].unbind()
        return view.sub_(mean_).div_(std_)


def _original_sizes(images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Height and width (B,) float32 on the images' device."""
    if sizes is None:
        b, _, h, w = images.shape
        return torch.full((b,), float(h), device=images.device), torch.full((b,), float(w), device=images.device)
    height, width = sizes.to(images.device, torch.float32, non_blocking=True).unbind(1)
    return height, width


def _check_normalisation(size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if size < 1:
        raise UserError(f"a view's size is 1 pixel or more, got {size}")
    if len(mean) != len(std) or not mean or not all(s > 0 for s in std):
        raise UserError(f"mean and std take one number a channel, std above 0, got {list(mean)} and {list(std)}")


def _check_images(images: Tensor, sizes: Tensor | None, channels: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        raise UserError(f"views take uint8 images (B, {channels}, H, W), got {images.dtype} {tuple(images.shape)}")
    if sizes is not None and tuple(sizes.shape) != (len(images), 2):
        raise UserError(f"sizes takes height and width of {len(images)} images, got {tuple(sizes.shape)}")
