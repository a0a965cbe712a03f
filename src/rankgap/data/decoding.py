"""Decoding an image, from its bytes to square views of uint8 pixels.

Whatever the format, there is one way: Pillow, `tiff` or `npy` gives the values as the file has them (`_Raw`), and
`_views` maps them to 8 bits and cuts the views.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from imagecodecs import png_decode
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from rankgap.data.channels import convert, unconvertible
from rankgap.data.cutting import ORIENTATIONS, Cuts, Picture, is_turned, shrinkage, turned
from rankgap.data.damage import identity, without_metadata
from rankgap.data.levels import Levels, Pixels, Samples, Values, check_depth, check_finite
from rankgap.data.names import said
from rankgap.data.npy import MAGIC, ArrayHeader, read_array, read_array_header
from rankgap.data.tiff import MAGICS, Tiff, open_tiff
from rankgap.errors import attempt

_T = TypeVar("_T")

# Pillow warns of metadata that it cannot read, and of large images: neither is news for the user.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_EXTRA_SAMPLES = 338  # a tag of TIFF: what the bands beyond the colours are
_IS_ALPHA = {1, 2}  # of that tag's values

_AS_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}  # modes that a PNG keeps; a TIFF keeps the others

FRAMES = "more frames or pages than the first, which alone is read"
BANDS = "further bands, which are dropped; to keep them, save the TIFF with LZW or deflate, or as .npy (H, W, C)"
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
        dtype: the type of its values, one of `TYPES`.
    """

    format: str
    channels: int
    height: int
    width: int
    remarks: tuple[str, ...] = ()
    dtype: str = "uint8"


class _Raw(NamedTuple):
    """An image as its file has it, neither turned nor mapped to 8 bits.

    Attributes:
        values: (H, W, C) of any type, shrunk by `shrink`.
        header: the file's, not turned.
        orientation: the EXIF orientation, 1 to 8.
        shrink: by how much the picture was shrunk when it was decoded.
    """

    values: Values
    header: Header
    orientation: int = 1
    shrink: int = 1


def _attempt(work: Callable[[], _T]) -> _T:
    """Run decoders. Any exception that they raise means a broken image."""
    return attempt(work, lambda error: ImageError(_reason(error)), own=ImageError)


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
    return found if isinstance(found, int) and found in ORIENTATIONS else 1


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
    channels, dtype = 1 if _is_grey(image) else 3, _dtype(image)
    return Header(image.format or "unknown", channels, height, width, remarks, dtype)


def _dtype(image: Image.Image) -> str:
    """The type of an open image's values. Those of a PNG with 16-bit colours are 8 bits only in Pillow."""
    if image.mode == "RGB" and isinstance(image, PngImagePlugin.PngImageFile) and not image.has_transparency_data:
        return "uint16" if any(tile.args == "RGB;16B" for tile in image.tile) else "uint8"
    return {"I": "int32", "F": "float32"}.get(image.mode, "uint16" if image.mode.startswith("I;16") else "uint8")


def _upright(header: Header, orientation: int) -> Header:
    """The header with the sides after rotation."""
    if not is_turned(orientation):
        return header
    return header._replace(height=header.width, width=header.height)


def _with_frames(header: Header, image: Image.Image) -> Header:
    """The header with the remark on frames, looked for last because that may move Pillow's place in the file.

    Those of an MPO are previews and gain maps.
    """
    if image.format == "MPO" or not _of_metadata(lambda: bool(getattr(image, "is_animated", False)), False):
        return header
    return header._replace(remarks=(FRAMES, *header.remarks))


def _look(image: Image.Image) -> Header:
    """The header of an image, without decoding it. A PNG may store its orientation after the pixels."""
    behind = image.format == "PNG" and "exif" not in image.info
    return _with_frames(_upright(_header(image), 1 if behind else _orientation(image)), image)


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
            return _of_array(read_array_header(file))
        if (tiff := _tiff(file)) is not None:
            tiff.check()
            return _upright(_of_tiff(tiff), tiff.orientation)
        return _with_image(file, _look)

    return _attempt(read)


def _of_array(array: ArrayHeader) -> Header:
    return Header("NPY", array.channels, array.shape[0], array.shape[1], dtype=array.dtype.name)


def _of_tiff(tiff: Tiff) -> Header:
    return Header("TIFF", tiff.channels, *tiff.sides, (FRAMES,) if tiff.stacked else (), tiff.dtype)


def _tiff(file: BinaryIO) -> Tiff | None:
    """A TIFF that Pillow does not read whole. If its tables are damaged, Pillow may still read the first page."""
    start = file.read(4)
    file.seek(0)
    found = _of_metadata(lambda: open_tiff(file), None) if start in MAGICS else None
    if found is None:
        file.seek(0)
    return found


def decode(
    file: BinaryIO, cuts: Cuts, channels: int | None = None, levels: Levels | None = None
) -> tuple[list[Pixels], Header]:
    """Decode an image and cut square views out of it.

    The EXIF orientation is applied. The first frame of an animation or a stack is taken. Transparency is laid on
    white. Palettes, CMYK and other colour spaces become RGB. Deep values are mapped to 8 bits by their levels, and
    rounded after the resize; a PNG of 16 bits with transparency is read in 8. A JPEG is decoded at the smallest of
    its scales 1, 1/2, 1/4, 1/8 at which no view is enlarged more than at scale 1.

    Args:
        file: any format that Pillow reads; TIFF of 1 to 64 channels of any of `TYPES` (see `tiff`); or .npy with
            (H, W) or (H, W, C) of any of `TYPES` of at most 32 bits.
        cuts: gives the views, from the height and width of the original.
        channels: the number of channels to convert to (1: luma of ITU-R 601; 3: RGB). None keeps 1 for grey, 3 for
            colour, and the channels of an array or a TIFF.
        levels: of each channel after the conversion. Without them, only 8-bit images are read, and unsigned 16-bit
            ones at full scale.

    Returns:
        A view (S, S, C) uint8 for each cut, and the header of the original.

    Raises:
        ImageError: the image is broken, has values of another kind or that are not finite, or cannot be converted.
    """
    return _attempt(lambda: _read(file, lambda raw: _views(raw, cuts, channels, levels), channels, cuts))


def read_values(file: BinaryIO, channels: int) -> Values:
    """The values of an image (H, W, C) in its own type, not turned.

    Args:
        file: as for `decode`.
        channels: C.

    Raises:
        ImageError: as for `decode`.
    """
    return _attempt(lambda: _read(file, lambda raw: _converted(raw.values, channels), channels))


def _read(file: BinaryIO, use: Callable[[_Raw], _T], channels: int | None, cuts: Cuts | None = None) -> _T:
    """Read an image of any format and use it. Pillow's images are used while they are open."""
    if _is_array(file):
        values = read_array(file)
        height, width, found = values.shape
        return use(_Raw(values, Header("NPY", found, height, width, dtype=values.dtype.name)))
    if (tiff := _tiff(file)) is not None:
        return use(_Raw(tiff.read(), _of_tiff(tiff), tiff.orientation))
    return _with_image(file, lambda image: use(_decode(image, cuts, channels)))


def _views(raw: _Raw, cuts: Cuts, channels: int | None, levels: Levels | None) -> tuple[list[Pixels], Header]:
    """The views of an image in 8 bits, and its header with the sides after rotation."""
    check_depth(raw.values.dtype, levels)
    values = _converted(raw.values, channels or raw.values.shape[2])
    samples: Samples = values
    if values.dtype != np.uint8:
        samples = (levels or Levels.full(values.shape[2])).apply(values)
    picture = Picture(samples, raw.header.height, raw.header.width, raw.orientation, raw.shrink)
    upright = _upright(raw.header, raw.orientation)
    return [picture.view(cut) for cut in cuts(upright.height, upright.width)], upright


def _converted(values: Values, channels: int) -> Values:
    check_finite(values)
    return convert(values, channels)


def _decode(image: Image.Image, cuts: Cuts | None, channels: int | None) -> _Raw:
    header = _header(image)
    if channels not in (None, 1, 3):
        raise unconvertible(header.channels, channels)
    wanted, shrink = channels or header.channels, 1
    if image.format in ("JPEG", "MPO") and cuts is not None:
        upright = _upright(header, _orientation(image))
        shrink = shrinkage(cuts(upright.height, upright.width))
        if shrink > 1:  # Pillow takes the largest scale that keeps this size
            image.draft(None, (header.width // shrink, header.height // shrink))
    if header.dtype == "uint16" and isinstance(image, PngImagePlugin.PngImageFile) and image.mode == "RGB":
        values = _sixteen_bit_colours(image)
    else:
        _load(image)
        values = _values(image, ALPHA in header.remarks, wanted)
    orientation = _orientation(image)  # only now: a PNG may store it after the pixels
    return _Raw(values, _with_frames(header, image), orientation, shrink)


def _sixteen_bit_colours(image: PngImagePlugin.PngImageFile) -> Values:
    """The values of a PNG (H, W, 3), of which Pillow would drop the lower 8 bits."""
    assert image.fp is not None
    image.fp.seek(0)
    values: Values = png_decode(image.fp.read())
    return values


def _values(image: Image.Image, is_transparent: bool, channels: int) -> Values:
    """The values of a loaded image (H, W, C): deep ones as they are, all others with `channels`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        return deep.astype(deep.dtype.newbyteorder("="), copy=False)[:, :, None]
    if is_transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values[:, :, None] if values.ndim == 2 else values


def _load(image: Image.Image) -> None:
    """Decode the pixels. Of a TIFF, Pillow would read the Exif and GPS folders too, broken ones included."""
    if image.format == "TIFF":
        exif = _of_metadata(image.getexif, Image.Exif())
        for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
            if tag in exif:
                del exif[tag]
    image.load()


def encode(image: Image.Image) -> BinaryIO:
    """A PIL image encoded as a file, so that it is read by the same rules, in `decode`.

    Raises:
        ImageError: its pixels cannot be read.
    """

    def write() -> BinaryIO:
        file = io.BytesIO()
        if image.mode in ("L", "RGB") and "transparency" not in image.info:  # in a sixtieth of the time
            np.save(file, turned(np.asarray(image), _orientation(image)))
        elif image.mode in _AS_PNG:
            image.save(file, "PNG", compress_level=1, exif=image.info.get("exif", b""))
        else:
            image.save(file, "TIFF")
        file.seek(0)
        return file

    return _attempt(write)
