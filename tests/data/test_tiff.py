from __future__ import annotations

import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rankgap.data.levels import TYPES
from rankgap.data.tiff import Tiff, open_tiff

RNG = np.random.default_rng(0)


def values(*shape: int, dtype: Any = np.uint16) -> Any:
    return (RNG.random(shape) * 200).astype(dtype)


def written(array: Any, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    file.seek(0)
    return file


def opened(file: io.BytesIO) -> Tiff:
    found = open_tiff(file)
    assert found is not None
    return found


CUBE = values(5, 20, 24)  # (C, H, W)


@pytest.mark.parametrize("dtype", [kind for kind in TYPES if kind != "float16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": None},  # pages, and nothing said
        {"planarconfig": "separate"},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"compression": "packbits", "bigtiff": True},
        {"compression": "zstd", "tile": (16, 16)},
        {"rowsperstrip": 3},
    ],
    ids=str,
)
def test_five_channels_are_read_back_however_they_are_written(dtype: str, options: dict[str, Any]) -> None:
    if options.get("imagej"):  # its files have no other types
        dtype = {"i": "uint16", "f": "float32"}.get(dtype[0], "uint8")
    if dtype.startswith("float") and options.get("predictor"):
        options = options | {"predictor": 3}
    array = CUBE.astype(dtype)
    found = opened(written(array, photometric="minisblack", **options))
    assert (found.channels, found.sides, found.dtype, found.stacked) == (5, (20, 24), dtype, False)
    assert np.array_equal(found.read(), array.transpose(1, 2, 0))
    assert found.read().dtype == np.dtype(dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_any_number_of_samples_interleaved_or_planar(channels: int, planar: str) -> None:
    array = values(12, 10, channels)
    stored = array if planar == "contig" else array.transpose(2, 0, 1)
    found = opened(
        written(stored.squeeze(), photometric="minisblack", planarconfig=planar if channels > 1 else None)
    )
    assert np.array_equal(found.read(), array)


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 11])
def test_an_array_with_channels_last_that_was_written_as_pages_of_rows(channels: int) -> None:
    array = values(20, 24, channels)
    assert np.array_equal(opened(written(array)).read(), array)


def test_a_stack_in_depth_or_time_is_not_channels_and_its_first_plane_is_read() -> None:
    planes = values(4, 20, 24)
    for letter in "ZT":
        for options in ({}, {"imagej": True}, {"ome": True}):
            found = opened(written(planes, metadata={"axes": f"{letter}YX"}, photometric="minisblack", **options))
            assert (found.channels, found.stacked) == (1, True)
            assert np.array_equal(found.read()[..., 0], planes[0])
    both = values(3, 2, 20, 24)
    for axes, wanted in (("ZCYX", both[0]), ("CZYX", both[:, 0])):
        found = opened(written(both, metadata={"axes": axes}, photometric="minisblack"))
        assert (found.channels, found.stacked) == (len(wanted), True)
        assert np.array_equal(found.read(), wanted.transpose(1, 2, 0))


def test_more_pages_than_channels_may_be_are_a_stack() -> None:
    found = opened(written(values(65, 8, 8), metadata=None))
    assert (found.channels, found.stacked) == (1, True)
    named = opened(written(values(65, 8, 8), metadata={"axes": "CYX"}))
    with pytest.raises(ValueError, match="it has 65 channels, and at most 64 are read"):
        named.check()


@pytest.mark.parametrize(
    "array",
    [
        values(20, 24, dtype=np.uint8),
        values(20, 24, 3, dtype=np.uint8),
        values(20, 24, 4, dtype=np.uint8),  # its fourth band is declared transparent
        values(2, 20, 24, 3, dtype=np.uint8),
        values(20, 24, dtype=np.uint8) > 3,
    ],
    ids=["grey", "RGB", "RGBA", "two pages of RGB", "bilevel"],
)
def test_what_pillow_reads_is_left_to_it(array: Any) -> None:
    assert open_tiff(written(array)) is None


@pytest.mark.parametrize("mode", ["CMYK", "P", "YCbCr", "LAB"])
def test_other_colours_are_left_to_pillow(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(values(20, 24, 3, dtype=np.uint8)).convert(mode if mode != "LAB" else "RGB").save(file, "TIFF")
    file.seek(0)
    assert open_tiff(file) is None


def test_four_deep_bands_are_channels_though_the_fourth_is_declared_transparent() -> None:
    array = values(20, 24, 4)
    assert np.array_equal(opened(written(array)).read(), array)


# Hostile files


def claiming(height: int, width: int, *, compressed: bool, bands: int = 1) -> bytes:
    """A file of some hundred bytes that claims an image of these sides."""
    data = bytes(200)
    tags = [(256, width), (257, height), (258, 16), (259, 5 if compressed else 1), (262, 1), (273, 8)]
    tags += [(277, bands), (278, height), (279, len(data))]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("height", "width"), [(100_000, 10_000), (30_000, 20_000), (2**31, 2**31), (9_000, 9_000)]
)
def test_a_small_file_that_claims_many_pixels_allocates_nothing(height: int, width: int, compressed: bool) -> None:
    file = io.BytesIO(claiming(height, width, compressed=compressed))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"cut short|values, and 1 to"):
        opened(file).read()
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"imagej": True},
        {"compression": "zlib"},
        {"compression": "lzw", "rowsperstrip": 4},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
def test_a_file_that_is_cut_short_says_so(options: dict[str, Any]) -> None:
    whole = written(CUBE, photometric="minisblack", **{"metadata": {"axes": "CYX"}} | options).getvalue()
    assert opened(io.BytesIO(whole)).read().shape == (20, 24, 5)
    for size in (len(whole) // 2, 2_000):  # the tables may come last
        with pytest.raises(ValueError, match="cut short"):
            opened(io.BytesIO(whole[:size])).read()


def test_a_compression_that_is_not_read_says_what_to_use() -> None:
    content = bytearray(claiming(4, 4, compressed=True))
    at = content.index(struct.pack("<HHII", 259, 4, 1, 5))
    content[at : at + 12] = struct.pack("<HHII", 259, 4, 1, 34712)
    with pytest.raises(
        ValueError, match="compressed with JPEG2000, which is not read here; use LZW, deflate or none"
    ):
        opened(io.BytesIO(bytes(content))).check()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 64),
    st.sampled_from([None, "lzw", "zlib", "zstd"]),
    st.sampled_from(["contig", "separate"]),
)
def test_what_is_written_is_what_is_read(
    dtype: str, height: int, width: int, channels: int, compression: str | None, planar: str
) -> None:
    array = (np.random.default_rng(height + width).normal(size=(height, width, channels)) * 60).astype(dtype)
    stored = array.squeeze(2) if channels == 1 else array if planar == "contig" else array.transpose(2, 0, 1)
    options: dict[str, Any] = {"planarconfig": planar} if channels > 1 else {}
    options |= {"photometric": "minisblack", "metadata": None, "compression": compression}
    found = open_tiff(written(stored, **options))
    if found is None:
        assert (dtype, channels) == ("uint8", 1)
        return
    assert np.array_equal(found.read(), array)


def test_tables_that_lead_back_to_one_another_are_refused_at_once() -> None:
    content = bytearray(claiming(4, 4, compressed=False))
    content[-4:] = content[4:8]  # the next table is the first one
    with pytest.raises(ValueError, match="lead back to one another"):
        open_tiff(io.BytesIO(bytes(content)))
