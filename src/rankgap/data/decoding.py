"""From an encoded image to uint8 pixels of a stored size."""

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
    OSError,  # truncated, of no known format, unreadable
    SyntaxError,  # Pillow: a PNG chunk that cannot be
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
    """An image cannot be decoded; the message is the reason."""


class Header(NamedTuple):
    """What an image says of itself; height and width in pixels, as it is meant to be seen (EXIF orientation)."""

    format: str
    channels: int
    height: int
    width: int


def _reason(error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image of a known format")
    if isinstance(error, OSError) and error.strerror:
        return ImageError(error.strerror)
    return ImageError(str(error) or type(error).__name__)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _turn(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied; Pillow turns a TIFF by itself."""
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
            f"an array of shape {array.shape} and type {array.dtype}, not (H, W) or (H, W, C) of uint8 or uint16"
        )
    pixels: Pixels = array[:, :, None] if array.ndim == 2 else array
    return pixels


def _to_8_bits(values: npt.NDArray[np.uint16]) -> Pixels:
    """Full scale to full scale (65,535 to 255), so that images stay comparable in brightness."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_header(file: BinaryIO) -> Header:
    """Format, channels and size of an image, without decoding it where the format allows.

    Raises:
        ImageError: no image can be read from the file.
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

    EXIF orientation is applied; of an animation or a stack the first frame is taken; transparency is laid on
    white; palettes, CMYK and other colour spaces become RGB; 16-bit values are scaled by 255 / 65,535. A JPEG is
    decoded at the least of its scales 1, 1/2, 1/4, 1/8 that is not below `size`; the rest is bicubic, antialiased.

    Args:
        file: any format that Pillow reads, or .npy with (H, W) or (H, W, C) of uint8 or uint16.
        size: side S of the result in pixels.
        channels: convert to this many channels (1: luma of ITU-R 601; 3: RGB); None keeps 1 for grey, 3 for
            colour, and what an array has.

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
        raise ImageError("32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels not in (None, 1, 3):
        raise ImageError(f"{header.channels} channels cannot be converted to {channels}, only 1 to 3 and 3 to 1")
    mode = "L" if (channels or header.channels) == 1 else "RGB"
    image = image.convert(mode)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    pixels = np.asarray(image)
    return (pixels[:, :, None] if mode == "L" else pixels), header


def _squash(array: Pixels, size: int) -> Pixels:
    """(H, W, C) to (size, size, C), each channel by itself."""
    if array.shape[:2] == (size, size):
        return array
    channels = (Image.fromarray(np.ascontiguousarray(array[:, :, c])) for c in range(array.shape[2]))
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels], axis=2)


def convert(pixels: Pixels, channels: int) -> Pixels:
    """(..., C) to another number of channels: grey repeated, or the luma of ITU-R 601.

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
        # Pillow's integers, so that a .npy and a PNG of one picture agree.
        luma: Pixels = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
        return luma[..., None]
    raise ImageError(f"{found} channels cannot be converted to {channels}, only 1 to 3 and 3 to 1")
