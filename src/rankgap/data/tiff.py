"""TIFF files that Pillow does not read whole: more than 8 bits a channel, or other channels than grey and RGB.

Which axis is what, by the letters that `tifffile` gives to the axes of a file's first image (from OME, ImageJ or
its own metadata, or from the pages):

* X and Y are the sides;
* S (samples of a pixel, interleaved or planar) and C (channels) are the channels;
* I and Q (pages of which the file says no more) are channels too if a page is grey and there are at most 64;
* of every other axis (Z: depth, T: time, other pages), the first plane is read.

Where all three axes are unnamed and the last is the shortest, it is the channels: `tifffile.imwrite` writes an
array (H, W, C) as H pages unless told otherwise. A band that is declared as transparency is a channel like the
rest, because that library declares a fourth band so. Further images (thumbnails, smaller copies) are not read.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from rankgap.data.levels import TYPES, Values

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_CHANNELS = 64
_CHANNELS, _PAGES = "CS", "IQ"  # letters of axes
_ORIENTATION = 274  # a tag
_PHOTOMETRIC = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
_DECODED = (
    COMPRESSION.NONE,
    COMPRESSION.LZW,
    COMPRESSION.DEFLATE,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.ZSTD,
)
_DENSEST = 20_000  # bytes that one byte of a file may become; a blank image takes half of that
_MOST_PAGES = 4_096  # of a file whose axes are looked at; of one with more, Pillow reads the first
_MOST_VALUES = 4  # times the pixels that Pillow decodes

# It logs what it finds wrong with a file. What matters to the user is raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class Tiff(NamedTuple):
    """The first image of a TIFF, before its pixels are read. Its file must stay open.

    Attributes:
        source: all of its pages, or the first one.
        axes: letters of the axes of `source`; the channels' are C or S.
        orientation: how it is to be turned, 1 to 8 as in Exif.
        stacked: whether the file has further planes or images, which are not read.
    """

    source: TiffPageSeries | TiffPage
    axes: str
    orientation: int
    stacked: bool

    @property
    def channels(self) -> int:
        """C."""
        sides = zip(self.axes, self.source.shape, strict=True)
        return math.prod(length for axis, length in sides if axis in _CHANNELS)

    @property
    def dtype(self) -> str:
        """The type of its pixels, one of `TYPES`."""
        return str(np.dtype(self.source.dtype).name)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width, not turned."""
        height, width = (self.source.shape[self.axes.index(axis)] for axis in "YX")
        return height, width

    def check(self) -> None:
        """Refuse a file before its pixels are read.

        Raises:
            ValueError: it has too many channels or pixels, is compressed in another way, or is cut short.
        """
        if self.channels > MOST_CHANNELS:
            raise ValueError(f"it has {self.channels} channels, and at most {MOST_CHANNELS} are read")
        values, most = math.prod(self.source.shape), _MOST_VALUES * 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
        if not 0 < values <= most:
            raise ValueError(f"it has {values:,} values, and 1 to {most:,} are decoded; cut it into tiles")
        page = self.source.keyframe
        if page.compression not in _DECODED:
            name = getattr(page.compression, "name", page.compression)
            raise ValueError(f"it is compressed with {name}, which is not read here; use LZW, deflate or none")
        if not _is_whole(self.source):
            raise ValueError("the file is cut short, or some of its planes are in other files")

    def read(self) -> Values:
        """The pixels (H, W, C) in their own type, not turned.

        Raises:
            ValueError: as for `check`.
        """
        self.check()
        values: Values = self.source.asarray(maxworkers=1)
        if values.shape != self.source.shape:
            raise ValueError(f"expected pixels {self.source.shape}, got {values.shape}: its tables are damaged")
        values = values[tuple(slice(None) if axis in "YX" + _CHANNELS else 0 for axis in self.axes)]
        axes = [axis for axis in self.axes if axis in "YX" + _CHANNELS]
        values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
        values = values.reshape(*values.shape[:2], -1)  # (H, W, C)
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def open_tiff(file: BinaryIO) -> Tiff | None:
    """The first image of a TIFF; None if Pillow reads it as well: grey, RGB and other colours of up to 8 bits.

    Raises:
        Exception: nearly anything, if the file's tables are broken.
    """
    _check_chain(file)
    # Not _multifile: OME may name other files, which would be opened.
    tiff = TiffFile(file, _multifile=False, is_mmstack=False, is_ndtiff=False)
    first, series = tiff.pages.first, tiff.series[0]
    if first.photometric not in _PHOTOMETRIC or np.dtype(first.dtype).name not in TYPES:
        return None
    source: TiffPageSeries | TiffPage = series
    axes = _named(series, first)
    stacks = [(axis, n) for axis, n in zip(axes, series.shape, strict=True) if axis not in "YX" + _CHANNELS]
    outside = axes.count("C") > first.axes.count("C")
    if sorted(axis for axis in axes if axis in "YX") != ["X", "Y"] or (stacks and not outside):
        source, axes = first, first.axes
    stacked = any(n > 1 for _, n in stacks) or len(tiff.series) > 1
    orientation = first.tags.valueof(_ORIENTATION)
    found = Tiff(source, axes, orientation if orientation in range(1, 9) else 1, stacked)
    return None if _is_plain(found, first, outside) else found


def _check_chain(file: BinaryIO) -> None:
    """Refuse tables that lead back to one another, which `tifffile` would follow for ever, and very many pages."""
    start = file.read(16)
    order = "<" if start.startswith(b"II") else ">"
    is_big = struct.unpack_from(order + "H", start, 2) == (43,)
    number, offset, tag = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    (place,) = struct.unpack_from(order + offset, start, 8 if is_big else 4)
    seen: set[int] = set()
    while place:
        if place in seen or len(seen) == _MOST_PAGES:
            raise ValueError("its tables lead back to one another, or it has too many pages")
        seen.add(place)
        file.seek(place)
        (tags,) = _numbers(file, order + number)
        file.seek(tag * tags, 1)
        (place,) = _numbers(file, order + offset)
    file.seek(0)


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    """Numbers from a file; zeros where it has ended."""
    size = struct.calcsize(form)
    return struct.unpack(form, file.read(size).ljust(size, b"\0"))


def _named(series: TiffPageSeries, page: TiffPage) -> str:
    """The axes' letters, where those that are channels in effect are named C."""
    axes: str = series.axes
    if axes == "QYX" and series.shape[2] < min(series.shape[:2]):
        return "YXC"
    pages = math.prod(n for axis, n in zip(axes, series.shape, strict=True) if axis in _PAGES)
    if page.samplesperpixel == 1 and "C" not in axes and pages <= MOST_CHANNELS:
        return "".join("C" if axis in _PAGES else axis for axis in axes)
    return axes


def _is_plain(found: Tiff, page: TiffPage, outside: bool) -> bool:
    """Whether Pillow reads all of a file: one page of 8 bits, grey or RGB, with or without transparency."""
    if found.dtype != "uint8" or page.compression not in _DECODED:
        return found.dtype == "uint8"
    alpha = tuple(page.extrasamples) in ((EXTRASAMPLE.ASSOCALPHA,), (EXTRASAMPLE.UNASSALPHA,))
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    return not outside and page.samplesperpixel == colours + alpha


def _is_whole(source: TiffPageSeries | TiffPage) -> bool:
    """Whether all bytes that the pixels need are in the file: what is missing would be made up."""
    page = source.keyframe
    size = page.parent.filehandle.size
    needed = math.prod(source.shape) * np.dtype(source.dtype).itemsize
    promised = (page.parent.imagej_metadata or {}).get("images", 1)
    if page.is_imagej and promised > len(page.parent.pages) and getattr(source, "kind", None) != "imagej":
        return False  # tifffile falls back on the first page
    if isinstance(source, TiffPageSeries) and source.dataoffset is not None:
        return bool(source.dataoffset + needed <= size)
    try:
        pages: list[TiffPage | TiffFrame | None] = [source] if isinstance(source, TiffPage) else list(source)
    except IndexError:  # the file has fewer pages than it says
        return False
    stored = math.prod(page.shape) * page.bitspersample // 8 if page.compression == COMPRESSION.NONE else 1
    return (
        needed <= _DENSEST * size
        and len(pages) * math.prod(page.shape) == math.prod(source.shape)
        and all(each is not None and _has_segments(each, stored, size) for each in pages)
    )


def _has_segments(page: TiffPage | TiffFrame, stored: int, size: int) -> bool:
    offsets, counts = page.dataoffsets, page.databytecounts
    return (
        len(offsets) == len(counts) == math.prod(page.chunked)
        and min(offsets) > 0
        and min(counts) > 0
        and max(offset + count for offset, count in zip(offsets, counts, strict=True)) <= size
        and sum(counts) >= stored
    )
