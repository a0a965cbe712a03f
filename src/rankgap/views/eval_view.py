"""The one view from which features are read.

Shapes: B images, C channels, (H, W) stored size of an image, S side of the view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.views.resampling import bicubic, crop_taps, separable


def eval_view(
    images: Tensor,
    sizes: Tensor | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    centre: float = 1.0,
) -> Tensor:
    """The one view from which features are read: a central square, resized and normalised.

    The resize is bicubic, and antialiased where it shrinks (Keys's kernel, as in PIL). At H = W = S the pixels are
    those of the image.

    Args:
        images: uint8 (B, C, H, W).
        sizes: (B, 2) original height and width, or None (see `Views.forward`).
        size: side S of the view, in pixels.
        mean: per-channel mean in [0, 1] to normalise with.
        std: per-channel standard deviation of values in [0, 1] to normalise with.
        centre: side of the square, as a share of the shorter side. Below 1, the square is what remains if the
            shorter side is resized to S / centre and the centre is cut out, with torchvision's rounding.

    Returns:
        float32 (B, C, S, S)

    Raises:
        UserError: the images or sizes have another dtype or shape, or a number is outside its range.
    """
    check_normalisation(size, mean, std)
    check_images(images, sizes, len(mean))
    h, w = images.shape[-2:]
    height, width = original_sizes(images, sizes)
    sides = torch.stack([height, width])  # (2, B)
    extent = torch.minimum(height, width).expand_as(sides)
    corner = ((sides - extent) / 2).floor_()
    if centre < 1:
        lengths = (round(size / centre) * sides / extent).floor_()  # after the resize
        corner, extent = ((lengths - size) / 2).round_() * sides / lengths, size * sides / lengths
    scale = torch.stack([h / height, w / width])
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = crop_taps(corner * scale, extent * scale, (h, w), size, bicubic)
        view = separable(images.float(), rows, columns).div_(255).clamp_(0, 1)
        mean_, std_ = torch.tensor([mean, std], device=images.device)[:, :, None, None].unbind()
        return view.sub_(mean_).div_(std_)


def original_sizes(images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Original height and width, (B,) float32, on the images' device."""
    if sizes is None:
        b, _, h, w = images.shape
        return torch.full((b,), float(h), device=images.device), torch.full((b,), float(w), device=images.device)
    height, width = sizes.to(images.device, torch.float32, non_blocking=True).unbind(1)
    return height, width


def check_normalisation(size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise `UserError` unless a view has a side, and each channel a mean and a deviation above 0."""
    if size < 1:
        raise UserError(f"expected a view size of 1 pixel or more, got {size}")
    if len(mean) != len(std) or not mean or not all(s > 0 for s in std):
        raise UserError(
            f"expected mean and std with one number per channel, std above 0, got {list(mean)} and {list(std)}"
        )


def check_images(images: Tensor, sizes: Tensor | None, channels: int) -> None:
    """Raise `UserError` unless the images are uint8 (B, C, H, W), and the sizes (B, 2)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        raise UserError(f"expected uint8 images (B, {channels}, H, W), got {images.dtype} {tuple(images.shape)}")
    if sizes is not None and tuple(sizes.shape) != (len(images), 2):
        raise UserError(
            f"expected sizes ({len(images)}, 2), height and width of each image, got {tuple(sizes.shape)}"
        )
