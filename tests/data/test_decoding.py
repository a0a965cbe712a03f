from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin

from rankgap.data.decoding import ALPHA, BANDS, FRAMES, ImageError, read_header
from tests.data.pictures import encoded, pixels, squashed


def smooth(height: int, width: int) -> Image.Image:
    """A picture with detail that a draft keeps: waves of many periods."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) + np.sin((x + 2 * y) / 23) for c in range(3)]
    return Image.fromarray((127 + 42 * np.stack(waves, 2)).clip(0, 255).astype(np.uint8))


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


# JPEG drafts


@pytest.mark.parametrize(("height", "width"), [(333, 517), (250, 131), (129, 1000), (75, 75)])
def test_a_jpeg_draft_shows_the_whole_picture_and_nothing_beside_it(height: int, width: int) -> None:
    picture = encoded(smooth(height, width), "JPEG", quality=98, subsampling=0)
    found, _ = squashed(io.BytesIO(picture), 32)
    with Image.open(io.BytesIO(picture)) as image:
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    error = np.square(found.astype(float) - wanted).mean()
    assert 10 * np.log10(255**2 / error) > 40  # dB; 28 to 37 where the box of the draft is not heeded


# Damage


def test_memory_and_recursion_that_a_decoder_runs_out_of_are_broken_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for failure, reason in ((MemoryError(), "memory"), (RecursionError("too deep"), "too deep")):

        def fail(file: object, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(ImageError, match=reason):
            squashed(io.BytesIO(b"anything"), 8)


def huge(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (huge("(200000, 200000, 3)"), "cut short: .* takes 120,000,000,000 bytes, and 100 are there"),
        (huge("(-5, 20, 3)"), "expected an array"),
        (huge("((((("), "."),
        (npy(pixels().astype(np.int64)), r"of uint8, uint16, .*float32, got \(12, 12, 3\) of int64"),
        (npy(pixels() / 255), r"got \(12, 12, 3\) of float64; save array\.astype\(numpy\.float32\)"),
        (npy(pixels() > 3), r"got \(12, 12, 3\) of bool"),
        (npy(pixels() * 1j), r"got \(12, 12, 3\) of complex128"),
        (npy(pixels()[None]), "expected an array"),
        (npy(np.array([{}], object), allow_pickle=True), "expected an array"),
        (npy(pixels((64, 64)).transpose(2, 0, 1)), r"\(3, 64, 64\) seems to have its channels first"),
        (npy(pixels((48, 64), 8).transpose(2, 0, 1)), "channels first"),
    ],
)
def test_a_npy_file_is_not_believed(content: bytes, reason: str) -> None:
    for look in (read_header, lambda file: squashed(file, 8)):
        with pytest.raises(ImageError, match=reason):
            look(io.BytesIO(content))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12, 200])
def test_a_npy_file_of_many_bands_keeps_them_in_any_memory_layout(channels: int) -> None:
    values = pixels((16, 16), channels)
    for array in (values, np.asfortranarray(values), values.astype(">u2") * 257, values.astype("<u2") * 257):
        assert np.array_equal(squashed(io.BytesIO(npy(array)), 16)[0], values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (bytes(500), "zero bytes"),
        (b"%PDF-1.4", "PDF"),
        (b"hello", "known format"),
    ],
)
def test_a_file_that_is_something_else_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        squashed(io.BytesIO(content), 8)


def test_an_image_of_too_many_pixels_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ImageError, match="more than the 100 pixels that are decoded; make it smaller"):
        squashed(io.BytesIO(encoded(pixels((12, 12)))), 8)


# Metadata


def exif() -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = 1
    found[ExifTags.Base.Make] = "a maker of cameras"
    found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:01 00:00:00"
    return found


def jpeg_metadata(content: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while content[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, at + 2)
        if 0xE1 <= content[at + 1] <= 0xED or content[at + 1] == 0xFE:
            yield at + 4, at + 2 + length
        at += 2 + length


def png_metadata(content: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 5].islower():
            yield at + 8, at + 12 + length
        at += 12 + length


def tiff_metadata(content: bytes) -> Iterator[tuple[int, int]]:
    (table,) = struct.unpack_from("<I", content, 4)
    for at in range(table + 2, table + 2 + 12 * content[table], 12):
        if int.from_bytes(content[at : at + 2], "little") in (271, 274, 34665):
            yield at + 2, at + 12


@pytest.mark.parametrize(
    ("form", "parts", "options"),
    [
        ("JPEG", jpeg_metadata, {"icc_profile": b"x" * 99, "comment": b"hello"}),
        ("MPO", jpeg_metadata, {"save_all": True, "append_images": [Image.fromarray(pixels((16, 16)))]}),
        ("PNG", png_metadata, {"icc_profile": b"x" * 99, "dpi": (72, 72)}),
        ("TIFF", tiff_metadata, {}),
        ("TIFF", tiff_metadata, {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_metadata_however_damaged_never_stop_good_pixels(
    form: str, parts: Callable[[bytes], Iterator[tuple[int, int]]], options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(pixels((16, 16))), form, exif=exif(), **options)
    upright = squashed(io.BytesIO(content), 16)[0]
    turned = {np.rot90(way, k).tobytes() for way in (upright, upright[:, ::-1]) for k in range(4)}
    places = list(parts(content))
    assert places
    for k in range(100):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(*places[k % len(places)])] = rng.integers(0, 256)
        assert squashed(io.BytesIO(bytes(damaged)), 16)[0].tobytes() in turned
        assert read_header(io.BytesIO(bytes(damaged))).channels == 3


def test_a_text_as_long_as_a_workflow_does_not_stop_a_png() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", "x" * 3_000_000, zip=True)
    content = encoded(pixels((8, 8)), pnginfo=text)
    assert np.array_equal(squashed(io.BytesIO(content), 8)[0], pixels((8, 8)))


def test_a_png_with_a_broken_picture_stays_broken() -> None:
    content = bytearray(encoded(pixels((32, 32))))
    content[200] ^= 0xFF
    with pytest.raises(ImageError):
        squashed(io.BytesIO(bytes(content)), 8)


# What an image has besides


def tiff(array: Any, extra: int | None) -> bytes:
    """An uncompressed TIFF of many bands, the last ones declared as a kind of ExtraSamples, or not at all."""
    height, width, bands = array.shape
    data: bytes = array.tobytes()
    tags = [
        (256, [width]),
        (257, [height]),
        (258, [8] * bands),
        (259, [1]),
        (262, [2]),
        (273, [8]),
        (277, [bands]),
    ]
    tags += [(278, [height]), (279, [len(data)]), (284, [1])] + ([(338, [extra] * (bands - 3))] if extra else [])
    table, tail = struct.pack("<H", len(tags)), b""
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}H", *values)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", end + len(tail))
        tail += packed if len(packed) > 4 else b""
        table += struct.pack("<HHI", tag, 3, len(values)) + place
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4) + tail


def test_a_fourth_band_is_transparency_only_where_the_tiff_says_so() -> None:
    bands = np.concatenate([pixels((16, 16)), np.full((16, 16, 1), 20, np.uint8)], 2)
    found, header = squashed(io.BytesIO(tiff(bands, None)), 16)
    assert np.array_equal(found, bands)
    assert (header.channels, header.remarks) == (4, ())
    declared, header = squashed(io.BytesIO(tiff(bands, 2)), 16)
    assert declared.min() > 200  # nearly transparent, on white
    assert header.remarks == (ALPHA,)


def test_bands_in_a_compression_that_only_pillow_reads_are_dropped_and_remarked() -> None:
    bands, file = pixels((16, 16), 4), io.BytesIO()
    tifffile.imwrite(file, bands, photometric="rgb", extrasamples=["unspecified"], compression="lzma")
    found, header = squashed(io.BytesIO(file.getvalue()), 16)
    assert np.array_equal(found, bands[..., :3])
    assert header.remarks == (BANDS,)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_further_frames_and_pages_are_remarked_and_the_first_is_read(form: str) -> None:
    first, second = (Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (10, 250))
    content = encoded(first, form, save_all=True, append_images=[second])
    found, header = squashed(io.BytesIO(content), 16)
    assert found.max() < 20
    assert header.remarks == read_header(io.BytesIO(content)).remarks == (FRAMES,)


def test_an_orientation_behind_the_pixels_of_a_png_is_applied() -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    content = encoded(pixels((8, 8)))
    body = b"eXIf" + turned.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    found, _ = squashed(io.BytesIO(content[:-12] + chunk + content[-12:]), 8)
    assert np.array_equal(found, np.rot90(pixels((8, 8)), -1))
