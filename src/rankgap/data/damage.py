"""Why Pillow cannot read a file: its metadata are broken, or it is not an image."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # and the order of its bytes
_ORIENTATION = 274
# Size, bits, compression, colours, strips and tiles, bands; and the tables that JPEG and fax in a TIFF need.
_TIFF_KEPT = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332}
_TIFF_KEPT |= {338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
_PNG_KEPT = (b"tRNS", b"eXIf")  # beside the chunks in capitals, which decide the pixels
_TIFF_BANDS = "a TIFF of a kind that is not read; save it with LZW or deflate, or as .npy (H, W, C)"
# The beginning of a file, and its format.
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the image; fetch it with git lfs pull"),
    (b"<!doctype html", "a web page in place of an image"),
    (b"<html", "a web page in place of an image"),
    (b"<svg", "an SVG drawing, which is not read; convert it to PNG"),
    (b"<?xml", "XML in place of an image"),
    (b"%pdf", "a PDF, which is not read; convert its pages to PNG"),
    (b"pk\x03\x04", "a ZIP archive in place of an image"),
    (b"\x93numpy", "a .npy file that cannot be read"),
    (b"ii*\0", _TIFF_BANDS),
    (b"mm\0*", _TIFF_BANDS),
    (b"ii+\0", _TIFF_BANDS),
    (b"mm\0+", _TIFF_BANDS),
)
_HEIF = (b"hei", b"hev", b"mif1", b"msf1")


def identity(start: bytes) -> str:
    """The kind of a file that no decoder can read.

    Args:
        start: its first 64 bytes or more.
    """
    if start[4:8] == b"ftyp" and start[8:12].startswith(_HEIF):
        return "HEIC (HEIF), which is not read; convert it to JPEG"
    if start and not start.strip(b"\0"):
        return "nothing but zero bytes"
    lower = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (text for begins, text in _BEGINNINGS if lower.startswith(begins)), "not an image in a known format"
    )


def without_metadata(content: bytes) -> bytes | None:
    """A PNG, JPEG or TIFF without texts, profiles and previews, so that its pixels can still be read.

    The orientation is kept if it can be read. None for another format, or if the file's parts cannot be found.
    """
    try:
        if content.startswith(_PNG):
            return _PNG + b"".join(_png_chunks(content))
        if content.startswith(_JPEG):
            return _jpeg_without(content)
        if content.startswith(tuple(_TIFF)):
            return _tiff_without(content, _TIFF[content[:4]])
    except struct.error:  # it is cut short
        return None
    return None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunk = content[at : at + 12 + length]
        whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if chunk[4:5].isupper() or (chunk[4:8] in _PNG_KEPT and whole):
            yield chunk
        at += len(chunk)


def _jpeg_without(content: bytes) -> bytes | None:
    """The file without its comments and its application segments, apart from JFIF, Exif and Adobe."""
    kept, at = [_JPEG], len(_JPEG)
    while content[at : at + 1] == b"\xff":
        marker, length = struct.unpack_from(">BH", content, at + 1)
        segment = content[at : at + 2 + length]
        if marker == 0xDA:  # the picture's data, to the end
            return b"".join([*kept, content[at:]])
        is_exif = marker == 0xE1 and segment[4:8] == b"Exif"
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE or is_exif:
            kept.append(segment)
        at += 2 + length
    return None


def _tiff_without(content: bytes, order: str) -> bytes:
    """The file with its first page only, whose table keeps only the tags that the pixels need."""
    (at,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, at)
    entries = [content[place : place + 12] for place in range(at + 2, at + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if _decides_pixels(entry, order)]
    table = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:at] + table + content[at + len(table) :]


def _decides_pixels(entry: bytes, order: str) -> bool:
    tag, kind, count, value = struct.unpack(order + "HHIH2x", entry)
    if tag == _ORIENTATION:
        return (kind, count) == (3, 1) and value in range(1, 9)
    return tag in _TIFF_KEPT
