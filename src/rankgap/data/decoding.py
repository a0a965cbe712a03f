"""Decoding an image to uint8 pixels at a stored size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from rankgap.data.damage import identity, without_metadata
from rankgap.data.names import said
from rankgap.data.npy import MAGIC, Pixels, read_array, read_array_header, to_8_bits

_T = TypeVar("_T")

# Pillow warns of metadata that it cannot read, and of large images: neither is news for the user.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXTRA_SAMPLES = 338  # a tag of TIFF: what the bands beyond the colours are
_IS_ALPHA = {1, 2}  # of that tag's values

_AS_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}  # modes that a PNG keeps; a TIFF keeps the others

FRAMES = "more frames or pages than the first, which alone is read"
BANDS = "further bands, which are dropped; to keep them, save all bands as .npy (H, W, C)"
ALPHA = "transparency (an alpha channel), which is laid on white"


class ImageError(Exception):
    """An image cannot be decoded; the message gives the reason."""


class Header(NamedTuple):
    """The header of an image.

    Attributes:
        format: the file format, such as "PNG".
        channels: the number of channels.
        height: in pixels, with the EXIF orientation applied.
        width: in pixels, with the EXIF orientation applied.
        remarks: what the image has besides that is not read as it is: `FRAMES`, `BANDS`, `ALPHA`.
    """

    format: str
    channels: int
    height: int
    width: int
    remarks: tuple[str, ...] = ()


def _attempt(work: Callable[[], _T]) -> _T:
    """Run decoders. Any exception that they raise means a broken image.

    This is the only place that catches every exception. On hostile bytes, Pillow, libtiff, zlib and NumPy's parser
    raise nearly anything, MemoryError and RecursionError included; no list of types has been complete.
    """
    try:
        return work()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that are decoded; make it smaller "
            "or cut it into tiles (from Python, a larger PIL.Image.MAX_IMAGE_PIXELS allows it)"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return said(error)


def _of_metadata(look: Callable[[], _T], otherwise: _T) -> _T:
    """Read metadata, with a default if they are damaged, so that they never keep the pixels from being read."""
    try:
        return _attempt(look)
    except ImageError:
        return otherwise


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that remains to be applied, 1 to 8; Pillow itself turns a TIFF."""
    if image.format == "TIFF":
        return 1
    found = _of_metadata(lambda: image.getexif().get(ExifTags.Base.Orientation), None)
    return found if isinstance(found, int) and found in _TURNS else 1


def _extra_bands(image: Image.Image) -> tuple[bool, bool]:
    """Whether a TIFF has bands beyond those that Pillow reads, and whether the last that it reads is no alpha."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False, False
    kinds = _of_metadata(lambda: frozenset(tags.get(_EXTRA_SAMPLES, ())), frozenset[int]())
    samples = _of_metadata(lambda: int(tags.get(277, 1)), 1)
    undeclared = image.mode in ("RGBA", "LA") and not kinds & _IS_ALPHA
    return samples > len(image.getbands()) or undeclared, undeclared


def _header(image: Image.Image) -> Header:
    """The header of an open image, before its orientation and frames are considered."""
    width, height = image.size
    more_bands, not_alpha = _extra_bands(image)
    found = {BANDS: more_bands, ALPHA: image.has_transparency_data and not not_alpha}
    remarks = tuple(remark for remark, applies in found.items() if applies)
    return Header(image.format or "unknown", 1 if _is_grey(image) else 3, height, width, remarks)


def _completed(header: Header, image: Image.Image, orientation: int) -> Header:
    """The header with the sides after rotation, and with the remark on frames.

    Frames are looked for last, because that may move Pillow's place in the file. Those of an MPO are previews and
    gain maps.
    """
    has_frames = image.format != "MPO" and _of_metadata(lambda: bool(getattr(image, "is_animated", False)), False)
    sides = (header.width, header.height) if orientation >= 5 else (header.height, header.width)
    remarks = (FRAMES, *header.remarks) if has_frames else header.remarks
    return header._replace(height=sides[0], width=sides[1], remarks=remarks)


def _look(image: Image.Image) -> Header:
    """The header of an image, without decoding it. A PNG may store its orientation after the pixels."""
    behind = image.format == "PNG" and "exif" not in image.info
    return _completed(_header(image), image, 1 if behind else _orientation(image))


def _with_image(file: BinaryIO, use: Callable[[Image.Image], _T]) -> _T:
    """Open an image and use it. If that fails, try again without its metadata, which may be what is broken.

    Raises:
        ImageError: the image is broken; the reason is that of the first attempt.
    """

    def open_and_use(file: BinaryIO) -> _T:
        with Image.open(file) as image:
            return use(image)

    try:
        return _attempt(lambda: open_and_use(file))
    except ImageError as error:
        if error.__cause__ is None:  # our own verdict, not a decoder's
            raise
        failed = error
    file.seek(0)
    content = file.read()
    if isinstance(failed.__cause__, UnidentifiedImageError):
        failed = ImageError(identity(content[:64]))
    bare = without_metadata(content)
    if bare is None:
        raise failed
    try:
        return _attempt(lambda: open_and_use(io.BytesIO(bare)))
    except ImageError:
        raise failed from None


def _is_array(file: BinaryIO) -> bool:
    start = file.read(len(MAGIC))
    file.seek(0)
    if not start:
        raise ImageError("an empty file")
    return start == MAGIC


def read_header(file: BinaryIO) -> Header:
    """The header of an image, which is not decoded if the format allows that.

    Raises:
        ImageError: the file is not an image that can be read.
    """

    def read() -> Header:
        if _is_array(file):
            array = read_array_header(file)
            return Header("NPY", array.channels, array.shape[0], array.shape[1])
        return _with_image(file, _look)

    return _attempt(read)


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

    def read() -> tuple[Pixels, Header]:
        if _is_array(file):
            array = to_8_bits(read_array(file))
            height, width, found = array.shape
            pixels = _squash(array, size)
            return convert(pixels, channels or found), Header("NPY", found, height, width)
        return _with_image(file, lambda image: _decode(image, size, channels))

    return _attempt(read)


def _decode(image: Image.Image, size: int, channels: int | None) -> tuple[Pixels, Header]:
    opened, header = image, _header(image)
    if channels not in (None, 1, 3):
        raise _unconvertible(header.channels, channels)
    drafted = image.draft(None, (size, size))
    box = drafted[1] if drafted else None  # the last row and column may lie in part outside the picture
    _load(image)
    orientation = _orientation(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise ImageError("it has 32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    elif ALPHA in header.remarks:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if (channels or header.channels) == 1 else "RGB"
    image = image.convert(mode)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    pixels = np.asarray(image)
    return (pixels[:, :, None] if mode == "L" else pixels), _completed(header, opened, orientation)


def _load(image: Image.Image) -> None:
    """Decode the pixels. Of a TIFF, Pillow would read the Exif and GPS folders too, broken ones included."""
    if image.format == "TIFF":
        exif = _of_metadata(image.getexif, Image.Exif())
        for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
            if tag in exif:
                del exif[tag]
    image.load()


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


def encode(image: Image.Image) -> BinaryIO:
    """A PIL image encoded as a file, so that it is read by the same rules, in `decode`.

    Raises:
        ImageError: its pixels cannot be read.
    """

    def write() -> BinaryIO:
        file = io.BytesIO()
        if image.mode in _AS_PNG:
            image.save(file, "PNG", compress_level=1, exif=image.info.get("exif", b""))
        else:
            image.save(file, "TIFF")
        file.seek(0)
        return file

    return _attempt(write)
