"""Converting images to another number of channels."""

from __future__ import annotations

import numpy as np

from rankgap.data.levels import Values

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def convert(pixels: Values, channels: int) -> Values:
    """Convert (..., C) of any type to another number of channels: repeat grey, or take the luma of ITU-R 601.

    Raises:
        ValueError: there is no such conversion.
    """
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=-1)
    if (found, channels) != (3, 1):
        raise unconvertible(found, channels)
    if pixels.dtype != np.uint8:
        deep: Values = pixels @ np.array(_LUMA)
        return deep[..., None]
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    # In Pillow's integer arithmetic, so that a .npy and a PNG of the same picture agree.
    luma: Values = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
    return luma[..., None]


def unconvertible(found: int, channels: int | None) -> ValueError:
    """The error for a conversion that does not exist."""
    counted = "1 channel" if found == 1 else f"{found} channels"
    return ValueError(f"{counted} cannot be converted to {channels}, only 1 to 3 and 3 to 1")
