"""Views cut out of photographs, against torchvision on the originals."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from rankgap.data import Batch, Crops, ImageSet, inspect, load_data
from rankgap.data.crops import Shape, crops_of
from rankgap.data.cutting import Cut, centre, shrinkage
from rankgap.data.decoding import ImageError, decode
from rankgap.data.encoded import BrokenImageError, EncodedImages
from rankgap.data.given import given_source
from tests.data.pictures import encoded, photograph, pixels, psnr, write

BICUBIC = InterpolationMode.BICUBIC
Box = tuple[float, float, float, float]


class Boxes(NamedTuple):
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def random_boxes(count: int, size: tuple[int, int], scale: tuple[float, float], seed: int = 0) -> list[Box]:
    """Crops (top, left, height, width) as torchvision draws them."""
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(seed)
    image = torch.empty(1, *size)
    return [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]


def cut(content: bytes, boxes: Sequence[Box], size: int, **options: Any) -> list[Any]:
    views, _ = decode(io.BytesIO(content), lambda height, width: [Cut(*box, size, **options) for box in boxes])
    return views


def torchvision_crops(content: bytes, boxes: Sequence[Box], size: int, how: Any = BICUBIC) -> list[Any]:
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        return [np.asarray(tv.resized_crop(upright, *map(int, box), [size, size], how)) for box in boxes]


# Quality


@pytest.mark.parametrize("which", [0, 1])
def test_crops_are_those_of_the_original_which_a_squash_does_not_keep(which: int) -> None:
    content = encoded(photograph((375, 500), which), "JPEG", quality=90)
    boxes = random_boxes(40, (375, 500), (0.08, 0.5))
    wanted = torchvision_crops(content, boxes, 224)
    ours = [psnr(a, b) for a, b in zip(cut(content, boxes, 224), wanted, strict=True)]
    with Image.open(io.BytesIO(content)) as image:
        squash = image.resize((256, 256), Image.Resampling.BICUBIC)
    scale = np.array([256 / 375, 256 / 500])
    squashed = []
    for box, crop in zip(boxes, wanted, strict=True):
        (top, left), (high, wide) = np.array(box[:2]) * scale, np.array(box[2:]) * scale
        found = squash.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        squashed.append(psnr(found, crop))
    assert min(ours) > 50  # measured: 54 to 55 at least, 73 to 74 in the median
    assert np.median(squashed) < 35  # measured: 27 and 34


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_the_interpolation_is_the_view_s(how: str) -> None:
    content = encoded(photograph((120, 160)))
    boxes = random_boxes(5, (120, 160), (0.1, 0.8))
    wanted = torchvision_crops(content, boxes, 64, InterpolationMode(how))
    for found, crop in zip(cut(content, boxes, 64, interpolation=how), wanted, strict=True):
        assert np.abs(found.astype(int) - crop).max() <= 1
    (left_as_it_is,) = cut(content, [(3, 4, 50, 50)], 50)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(left_as_it_is, np.asarray(image)[3:53, 4:54])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_shrunk_while_it_is_decoded_only_as_far_as_no_view_is_enlarged(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(photograph((1009, 1331)), "JPEG", quality=95, exif=exif)
    upright = (1009, 1331) if orientation == 1 else (1331, 1009)
    for scale, size, shrink in (
        ((0.5, 0.6), 224, 2),
        ((0.5, 0.6), 96, 4),
        ((0.5, 0.6), 64, 8),
        ((0.1, 0.2), 320, 1),
    ):
        boxes = random_boxes(6, upright, scale)
        assert shrinkage([Cut(*box, size) for box in boxes]) == shrink
        wanted = torchvision_crops(content, boxes, size)
        assert min(map(psnr, cut(content, boxes, size), wanted)) > 35


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (1200, 900), (300, 640), (181, 240)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_evaluation_sees_what_torchvision_s_resize_and_centre_crop_show(size: tuple[int, int], form: str) -> None:
    content = encoded(photograph(size), form)
    (found,), _ = decode(io.BytesIO(content), centre(224, 7 / 8))
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(tv.center_crop(tv.resize(image, [256], BICUBIC), [224]))
    assert psnr(found, wanted) > 45


# Geometry


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_cut_out_of_the_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for form in ("PNG", "JPEG"):
        content = encoded(photograph((60, 90)), form, exif=exif)
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
        plain = encoded(upright)
        boxes: list[Box] = [
            (5, 20, 40, 30),
            (0, 0, upright.height, upright.width),
            (1.25, 7.5, 31.5, 22.75),
            (10, 3, 32, 32),
        ]
        for found, wanted in zip(cut(content, boxes, 32), cut(plain, boxes, 32), strict=True):
            assert psnr(found, wanted) > 50  # rows and columns are rounded in another order


def photo_set(source: Path, **options: Any) -> EncodedImages:
    images = load_data(f"folder:{source}", **options)[0].images
    assert isinstance(images, EncodedImages)
    return images


def draw_halves(height: Tensor, width: Tensor) -> Boxes:
    """Two views: the upper half, and the left half."""
    zero = torch.zeros(2, len(height))
    return Boxes(zero, zero, torch.stack([height // 2, height]), torch.stack([width, width // 2]))


SHAPES = [Shape(16), Shape(12, "bilinear")]


def test_crops_are_drawn_in_the_sizes_of_the_originals_and_resized_to_each_view(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(photograph((40, 60)), "JPEG", exif=turned))
    photograph((50, 44)).save(tmp_path / "b.png")
    photograph((20, 20)).save(tmp_path / "c.webp", lossless=True)
    images = photo_set(tmp_path, size=16)
    seen: list[Any] = []

    def draw(height: Tensor, width: Tensor) -> Boxes:
        seen.append((height.tolist(), width.tolist()))
        return draw_halves(height, width)

    crops, boxes = crops_of(images, torch.tensor([2, 0, 1]), SHAPES, draw)
    assert seen == [([20.0, 60.0, 50.0], [20.0, 40.0, 44.0])]
    assert [tuple(crop.shape) for crop in crops] == [(3, 3, 16, 16), (3, 3, 12, 12)]
    assert all(crop.dtype == torch.uint8 for crop in crops)
    assert boxes.height.tolist() == [[10, 30, 25], [20, 60, 50]]
    for place, name in enumerate(["c.webp", "a.jpg", "b.png"]):
        content = (tmp_path / name).read_bytes()
        for v, shape in enumerate(SHAPES):
            top, left, high, wide = (float(each[v, place]) for each in boxes)
            how = InterpolationMode(shape.interpolation)
            (wanted,) = torchvision_crops(content, [(top, left, high, wide)], shape.size, how)
            assert np.abs(crops[v][place].permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def test_an_orientation_behind_the_pixels_of_a_png_is_met_when_its_crops_are_cut(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture = photograph((40, 60))
    content = encoded(picture)
    body = b"eXIf" + turned.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    (left, upper), _ = crops_of(photo_set(tmp_path, size=16), [0], [Shape(16)] * 2, draw_halves)
    whole = np.rot90(np.asarray(picture), -1)  # (60, 40): the halves that were drawn change places
    for found, part in ((left, whole[:, :20]), (upper, whole[:30])):
        wanted = np.asarray(Image.fromarray(part.copy()).resize((16, 16), Image.Resampling.BICUBIC))
        assert np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "channels"),
    [
        ("grey.png", encoded(photograph((40, 60)).convert("L")), 1),
        ("grey.jpg", encoded(photograph((400, 600)).convert("L"), "JPEG"), 1),
        ("palette.png", encoded(photograph((40, 60)).quantize(32)), 3),
        ("alpha.png", encoded(pixels((40, 60), 4)), 3),
        ("cmyk.jpg", encoded(photograph((40, 60)).convert("CMYK"), "JPEG"), 3),
        ("sixteen.png", encoded(pixels((40, 60), 1).squeeze(-1).astype(np.uint16) * 257), 1),
        ("deep.npy", pixels((40, 60), 5), 5),
        ("sixteen.npy", pixels((40, 60), 2).astype(">u2") * 257, 2),
    ],
)
def test_every_kind_of_image_has_crops_and_a_centre(
    name: str, content: Any, channels: int, tmp_path: Path
) -> None:
    np.save(tmp_path / name, content) if name.endswith("npy") else (tmp_path / name).write_bytes(content)
    images = photo_set(tmp_path, size=16)
    squares, _ = images.read([0])
    crops, _ = crops_of(images, [0], SHAPES, draw_halves)
    assert images.centres([0]).shape == (1, channels, 16, 16)
    assert [tuple(crop.shape) for crop in crops] == [(1, channels, 16, 16), (1, channels, 12, 12)]
    whole = squares.float().mean((0, 2, 3))
    assert (images.centres([0]).float().mean((0, 2, 3)) - whole).abs().max() < 40
    other = 3 if channels == 1 else 1
    if channels in (1, 3):
        converted = photo_set(tmp_path, size=16, channels=other)
        assert crops_of(converted, [0], SHAPES, draw_halves)[0][0].shape == (1, other, 16, 16)


# Sets of photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photographs in two classes."""
    for i in range(6):
        picture = photograph((40 + i, 60), i % 2)
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        picture.save(tmp_path / "ab"[i % 2] / f"{i}.jpg")
    return tmp_path


def test_images_that_would_be_shrunk_to_be_stored_stay_originals(folder: Path) -> None:
    held, _ = load_data(f"folder:{folder}", size=53)  # 8/7 of it is 61 px
    assert (held.in_memory, held.size, held.centre) == (True, 60, 1.0)
    train, _ = load_data(f"folder:{folder}", size=32)
    assert (train.in_memory, train.size, train.centre, train.side) == (False, 32, 7 / 8, 45)
    assert any("each view is cut out of the original" in note for note in train.notes)
    batch = train.batch([4, 1])
    assert batch.sizes is None
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    content = io.BytesIO((folder / "b" / "3.jpg").read_bytes())
    (wanted,), _ = decode(content, centre(32, 7 / 8))
    assert torch.equal(batch.images[0].permute(1, 2, 0), torch.from_numpy(wanted.copy()))
    assert isinstance(held.for_views([0], SHAPES, draw_halves), Batch)
    drawn = train.for_views([4, 1], SHAPES, draw_halves)
    assert isinstance(drawn, Crops)
    assert [len(crop) for crop in drawn.crops] == [2, 2]
    assert drawn.parameters.height.shape == (2, 2)


def test_a_sample_and_a_limit_of_photographs_keep_the_originals(folder: Path) -> None:
    train, _ = load_data(f"folder:{folder}", size=32)
    some = train.sample(3, seed=1)
    chosen = train.choice(3, seed=1)
    assert (len(some), some.in_memory, some.centre) == (3, False, 7 / 8)
    assert torch.equal(some.batch(range(3)).images, train.batch(chosen).images)
    assert some.labels is not None
    assert train.labels is not None
    assert torch.equal(some.labels, train.labels[chosen])
    limited, _ = load_data(f"folder:{folder}", size=32, limit=4, seed=3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))[:4]
    assert torch.equal(limited.batch(range(4)).images, train.batch(order).images)
    found = inspect(f"folder:{folder}", size=32)
    assert (found.mean, found.std) == (limited.mean, limited.std) or (found.mean, found.std) == (
        train.mean,
        train.std,
    )
    names, sample = found.sample(3, seed=1)
    assert sample.centre == 7 / 8
    assert names == [str(Path("ab"[k >= 3]) / f"{2 * (k % 3) + (k >= 3)}.jpg") for k in chosen.tolist()]


def broken_set(folder: Path, content: bytes, **options: Any) -> ImageSet:
    (folder / "b" / "3.jpg").write_bytes(content)
    return load_data(f"folder:{folder}", size=32, **options)[0]


def test_a_broken_photograph_is_named_whether_its_header_or_its_pixels_are_broken(folder: Path) -> None:
    whole = (folder / "b" / "3.jpg").read_bytes()
    train, _ = load_data(f"folder:{folder}", size=32)
    for content in (b"", whole[: len(whole) // 2]):
        (folder / "b" / "3.jpg").write_bytes(content)
        for read in (train.batch, lambda rows: train.for_views(rows, SHAPES, draw_halves)):
            with pytest.raises(BrokenImageError, match=r"3\.jpg cannot be read: "):
                read([0, 4])
        skipping, _ = load_data(f"folder:{folder}", size=32, on_bad_image="skip")
        assert [Path(image.name).name for image in skipping.skipped] == ["3.jpg"]
        assert len(skipping) == 5
        assert isinstance(skipping.for_views(range(5), SHAPES, draw_halves), Crops)


def test_a_photograph_that_changes_between_its_header_and_its_pixels_is_not_misread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankgap.data.crops._KEPT", 0)  # as a file that is too large to be kept
    train, _ = load_data(f"folder:{folder}", size=32)

    def draw(height: Tensor, width: Tensor) -> Boxes:
        write(folder / "a" / "0.jpg", pixels((70, 70)))
        return draw_halves(height, width)

    with pytest.raises(BrokenImageError, match=r"0\.jpg cannot be read: the file changed while it was read"):
        train.for_views([0], SHAPES, draw)


def test_the_shrinkage_of_a_view_larger_than_its_crop_is_none() -> None:
    assert shrinkage([Cut(0, 0, 100, 300, 101)]) == 1
    assert shrinkage([Cut(0, 0, 4000, 3000, 224), Cut(0, 0, 500, 500, 224)]) == 2
    with pytest.raises(ImageError, match="channels cannot be converted"):
        decode(io.BytesIO(encoded(pixels((40, 60)))), centre(16, 1.0), 2)


def test_rows_of_a_table_and_arrays_have_the_crops_of_their_files(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.jpg"))
    images = {"img": [{"bytes": path.read_bytes(), "path": None} for path in paths]}
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table(images), tmp_path / "table" / "train.parquet")
    arrays = [np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in paths]
    rows, sizes = [5, 0, 3], 32
    wanted = load_data(f"folder:{folder}", size=sizes)[0].for_views(rows, SHAPES, draw_halves)
    assert isinstance(wanted, Crops)
    for source in (f"hf:{tmp_path / 'table'}", given_source(arrays), given_source(paths)):
        found = load_data(source, size=sizes)[0].for_views(rows, SHAPES, draw_halves)
        assert isinstance(found, Crops)
        assert all(map(torch.equal, found.crops, wanted.crops))
