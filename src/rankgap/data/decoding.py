"""Decoding an image to uint8 pixels at a stored size."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

_NPY = b"\x93NUMPY"
_BROKEN = (
    OSError,  # truncated, of an unknown format, or unreadable
    SyntaxError,  # raised by Pillow for an invalid PNG chunk
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """An image cannot be decoded; the message gives the reason."""


class Header(NamedTuple):
    """The header of an image.

    Attributes:
        format: the file format, such as "PNG".
        channels: the number of channels.
        height: in pixels, with the EXIF orientation applied.
        width: in pixels, with the EXIF orientation applied.
    """

    format: str
    channels: int
    height: int
    width: int


def _reason(error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image in a known format")
    if isinstance(error, OSError) and error.strerror:
        return ImageError(error.strerror)
    return ImageError(str(error) or type(error).__name__)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _turn(image: Image.Image) -> int:
    """The EXIF orientation that remains to be applied; Pillow itself turns a TIFF."""
    return 1 if image.format == "TIFF" else int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _turn(image) >= 5:
        height, width = width, height
    return Header(image.format or "unknown", 1 if _is_grey(image) else 3, height, width)


def _array(file: BinaryIO) -> Pixels:
    """A .npy file as (H, W, C) uint8."""
    array = np.load(file, allow_pickle=False)
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(
            f"expected an array (H, W) or (H, W, C) of uint8 or uint16, got {array.shape} of {array.dtype}"
        )
    pixels: Pixels = array[:, :, None] if array.ndim == 2 else array
    return pixels


def _to_8_bits(values: npt.NDArray[np.uint16]) -> Pixels:
    """Map full scale to full scale (65,535 to 255), so that images remain comparable in brightness."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_header(file: BinaryIO) -> Header:
    """The header of an image, which is not decoded if the format allows that.

    Raises:
        ImageError: the file is not an image that can be read.
    """
    try:
        if _starts_as_array(file):
            height, width, channels = _array(file).shape
            return Header("NPY", channels, height, width)
        with Image.open(file) as image:
            return _header(image)
    except _BROKEN as error:
        raise _reason(error) from error


def _starts_as_array(file: BinaryIO) -> bool:
    start = file.read(len(_NPY))
    file.seek(0)
    if not start:
        raise ImageError("an empty file")
    return start == _NPY


def decode(file: BinaryIO, size: int, channels: int | None = None) -> tuple[Pixels, Header]:
    """Decode an image and squash it to a square.

    The EXIF orientation is applied. The first frame of an animation or a stack is taken. Transparency is laid on
    white. Palettes, CMYK and other colour spaces become RGB. 16-bit values are scaled by 255 / 65,535. A JPEG is
    decoded at the smallest of its scales 1, 1/2, 1/4, 1/8 that is not below `size`; the rest of the resize is
    bicubic and antialiased.

    Args:
        file: any format that Pillow reads, or .npy with (H, W) or (H, W, C) of uint8 or uint16.
        size: side S of the result in pixels.
        channels: the number of channels to convert to (1: luma of ITU-R 601; 3: RGB). None keeps 1 for grey, 3 for
            colour, and the channels of an array.

    Returns:
        (S, S, C) uint8, and the header of the original.

    Raises:
        ImageError: the image is broken, has 32-bit pixels (whose range is not known), or cannot be converted.
    """
    try:
        if _starts_as_array(file):
            array = _array(file)
            height, width, found = array.shape
            pixels = _squash(array, size)
            return convert(pixels, channels or found), Header("NPY", found, height, width)
        with Image.open(file) as image:
            return _decode(image, size, channels)
    except _BROKEN as error:
        raise _reason(error) from error


def _decode(image: Image.Image, size: int, channels: int | None) -> tuple[Pixels, Header]:
    header, turn = _header(image), _turn(image)
    image.draft(None, (size, size))
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise ImageError("it has 32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels not in (None, 1, 3):
        raise _unconvertible(header.channels, channels)
    mode = "L" if (channels or header.channels) == 1 else "RGB"
    image = image.convert(mode)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    pixels = np.asarray(image)
    return (pixels[:, :, None] if mode == "L" else pixels), header


def _squash(array: Pixels, size: int) -> Pixels:
    """Resize (H, W, C) to (size, size, C), each channel on its own."""
    if array.shape[:2] == (size, size):
        return array
    channels = (Image.fromarray(np.ascontiguousarray(array[:, :, c])) for c in range(array.shape[2]))
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels], axis=2)


def convert(pixels: Pixels, channels: int) -> Pixels:
    """Convert (..., C) to another number of channels: repeat grey, or take the luma of ITU-R 601.

    Raises:
        ImageError: there is no such conversion.
    """
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=-1)
    if (found, channels) == (3, 1):
        red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
        # In Pillow's integer arithmetic, so that a .npy and a PNG of the same picture agree.
        luma: Pixels = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
        return luma[..., None]
    raise _unconvertible(found, channels)


def _unconvertible(found: int, channels: int | None) -> ImageError:
    return ImageError(f"{found} channels cannot be converted to {channels}, only 1 to 3 and 3 to 1")
