"""A file with any contents is an image or a named broken image.

RANKGAP_FUZZ sets the number of examples of each test; thousands take minutes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from rankgap.data import inspect, load_data
from rankgap.data.decoding import ImageError, read_header, read_values
from rankgap.data.levels import TYPES
from rankgap.errors import UserError
from tests.data.pictures import encoded, pixels, squashed

T = TypeVar("T")
EXAMPLES = int(os.environ.get("RANKGAP_FUZZ", "150"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="RANKGAP_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(fuzz, max_examples=max(EXAMPLES // 5, 10))  # of whole data sets


def files() -> dict[str, bytes]:
    """A small file of each format and variant that is read."""
    picture = Image.fromarray(pixels((20, 24)))
    second = Image.fromarray(pixels((20, 24), seed=1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "maker"
    frames: dict[str, Any] = {"save_all": True, "append_images": [second]}
    grey = picture.convert("L")
    found = {
        "jpg": encoded(picture, "JPEG", exif=exif),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True, icc_profile=b"x" * 50),
        "png": encoded(picture, exif=exif),
        "palette.png": encoded(picture.quantize(16), transparency=1),
        "sixteen.png": encoded(np.asarray(grey).astype(np.uint16) * 257),
        "animated.png": encoded(picture, **frames),
        "animated.gif": encoded(picture, "GIF", **frames),
        "webp": encoded(picture, "WEBP"),
        "lossless.webp": encoded(picture, "WEBP", lossless=True),
        "avif": encoded(picture, "AVIF"),
        "jp2": encoded(picture, "JPEG2000"),
        "bmp": encoded(picture, "BMP"),
        "tga": encoded(picture, "TGA"),
        "rle.tga": encoded(picture, "TGA", compression="tga_rle"),
        "ppm": encoded(picture, "PPM"),
        "text.ppm": b"P3 2 2 255\n1 2 3 4 5 6 7 8 9 10 11 12\n",
        "tif": encoded(picture, "TIFF", exif=exif),
        "pages.tif": encoded(picture, "TIFF", **frames),
        "npy": npy(pixels((20, 24))),
        "sixteen.npy": npy(np.asfortranarray(pixels((9, 7)).astype(">u2"))),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"{compression}.tif"] = encoded(picture, "TIFF", compression=compression)
    cube = pixels((12, 10), 5).transpose(2, 0, 1)
    deep: dict[str, Any] = {"kind": "uint16", "photometric": "minisblack"}
    tiffs: dict[str, dict[str, Any]] = {
        "bands.tif": deep | {"kind": "uint8", "planarconfig": "separate"},
        "imagej.tif": deep | {"imagej": True, "metadata": {"axes": "CYX"}},
        "ome.tif": deep | {"ome": True, "metadata": {"axes": "CYX"}},
        "deflated.tif": deep | {"compression": "zlib", "predictor": True},
        "tiled.tif": deep | {"compression": "lzw", "tile": (16, 16), "bigtiff": True},
        "pages.big.tif": deep | {"metadata": None, "byteorder": ">", "compression": "zstd"},
    }
    for name, options in tiffs.items():
        file, kind = io.BytesIO(), options.pop("kind")
        tifffile.imwrite(file, cube.astype(kind), **options)
        found[name] = file.getvalue()
    found["colours.png"] = bytes(imagecodecs.png_encode(pixels((9, 7)).astype(np.uint16) * 16))
    found["fax.tif"] = encoded(grey.convert("1"), "TIFF", compression="group4")
    return found


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = files()
WORDS = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\1\0\0\0", b"\xff\x7f", b"\0"]


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of some files after one to six mishaps, most of them near its beginning; or bytes with its beginning."""
    content = bytearray(draw(st.sampled_from(contents)))
    if draw(st.integers(0, 9)) == 0:
        return bytes(content[: draw(st.integers(0, 30))]) + draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 6))):
        end = max(len(content), 1)
        at = draw(
            st.integers(0, end - 1) | st.integers(0, min(end, 200) - 1) | st.integers(max(end - 200, 0), end - 1)
        )
        match draw(st.sampled_from(["cut", "flip", "byte", "word", "delete", "insert", "repeat", "graft"])):
            case "cut":
                del content[at:]
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if content:
                content[at] = draw(st.integers(0, 255))
            case "word":
                word = draw(st.sampled_from(WORDS))
                content[at : at + len(word)] = word
            case "delete":
                del content[at : at + draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 200))]
            case "graft":
                other = draw(st.sampled_from(contents))
                content[at:] = other[at:]
    return bytes(content)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that claim to be large are rejected at once."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)


def or_said(look: Callable[[], T], kind: type[Exception]) -> tuple[T | None, str]:
    """The result, or the one-line message of an error of this kind; any other error propagates."""
    try:
        return look(), ""
    except kind as error:
        said = str(error)
    assert said
    assert said.isprintable()
    return None, said


def looked_at(content: bytes) -> None:
    for channels in (None, 1, 3):
        result, _ = or_said(partial(squashed, io.BytesIO(content), 8, channels), ImageError)
        if result is not None:
            found, header = result
            assert found.dtype == np.uint8
            assert found.shape == (8, 8, channels or header.channels)
            assert min(header.height, header.width) > 0
    or_said(lambda: read_header(io.BytesIO(content)), ImageError)
    values, _ = or_said(lambda: read_values(io.BytesIO(content), 3), ImageError)
    assert values is None or (values.dtype.name in TYPES and values.shape[2] == 3)


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_images_before_they_are_damaged(name: str) -> None:
    found, header = squashed(io.BytesIO(FILES[name]), 8)
    assert found.shape == (8, 8, header.channels)
    with_header = read_header(io.BytesIO(FILES[name]))
    assert with_header[:4] == header[:4]


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_are_an_image_or_an_image_error(content: bytes) -> None:
    looked_at(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_image_or_an_image_error(name: str) -> None:
    """Each format has its share of the examples."""

    @settings(fuzz, max_examples=max(EXAMPLES // 10, 10))
    @given(damaged([FILES[name]]))
    def check(content: bytes) -> None:
        looked_at(content)

    check()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@fuzz
@given(damaged(list(FILES.values())))
def test_a_file_grafted_from_others_is_an_image_or_an_image_error(content: bytes) -> None:
    looked_at(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@few
@given(
    contents=st.lists(damaged(list(FILES.values())), min_size=1, max_size=4),
    suffix=st.sampled_from(["png", "npy", "tif"]),
)
def test_a_folder_of_damaged_files_names_each_broken_one(
    contents: list[bytes], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "whole.png").write_bytes(FILES["png"])
    for i, content in enumerate(contents):
        (folder / f"{i}.{suffix}").write_bytes(content)
    spec = f"folder:{folder}"
    found = inspect(spec, channels=3)
    broken = {image.name for image in found.broken}
    if found.problems:  # 2 or 5 channels become no 3, and depths do not mix
        return
    train, _ = load_data(spec, channels=3, on_bad_image="skip")
    assert {image.name for image in train.skipped} == broken
    assert len(train) == 1 + len(contents) - len(broken)
    if broken:
        with pytest.raises(UserError) as caught:
            load_data(spec, channels=3)
        assert any(str(caught.value).startswith(f"{name} cannot be read: ") for name in broken)


def table(column: list[Any], kind: pa.DataType, **more: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(column, kind), **more}), file)
    return file.getvalue()


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TABLES = [
    table([{"bytes": FILES["png"], "path": f"é{i}.png"} for i in range(4)], STRUCT, label=[0, 1, 0, 1]),
    table([FILES["jpg"], FILES["webp"], None], pa.binary(), label=["a", "b", "a"]),
]


def read_table(folder: Path, content: bytes) -> None:
    (folder / "train.parquet").write_bytes(content)
    spec = f"hf:{folder}"
    found, error = or_said(lambda: load_data(spec, channels=3, on_bad_image="skip"), UserError)
    assert error.startswith(spec) or (found is not None and len(found[0]) > 0)
    _, error = or_said(lambda: inspect(spec, channels=3), UserError)
    assert error.startswith(spec) or not error


@few
@given(content=damaged(TABLES) | st.binary(max_size=100))
def test_a_damaged_table_is_read_or_a_user_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_table(tmp_path_factory.mktemp("fuzz"), content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@few
@given(
    rows=st.lists(
        st.none() | damaged([FILES["png"], FILES["jpg"], FILES["npy"]]) | st.binary(max_size=20),
        min_size=1,
        max_size=4,
    ),
    paths=st.lists(
        st.none() | st.text(max_size=8) | st.just("\0") | st.just("/dev/null/x"), min_size=4, max_size=4
    ),
    as_struct=st.booleans(),
)
def test_a_table_of_damaged_images_names_each_broken_row(
    rows: list[bytes | None], paths: list[str | None], as_struct: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if as_struct:
        column = [{"bytes": row, "path": path} for row, path in zip(rows, paths, strict=False)]
        content = table(column, STRUCT)
    else:
        content = table(rows, pa.binary())
    read_table(tmp_path_factory.mktemp("fuzz"), content)
