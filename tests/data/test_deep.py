"""Data sets of deep images: their levels, and how files of every kind are mapped by them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image

from rankgap.data import inspect, load_data
from rankgap.data.cutting import Cut, whole
from rankgap.data.decoding import FRAMES, ImageError, decode, read_header, read_values
from rankgap.data.encoded import BrokenImageError
from rankgap.data.levels import PERCENTILES, Levels, rounded
from rankgap.errors import UserError
from tests.data.pictures import encoded, pixels, write

TWELVE = Levels(low=(0.0,), high=(4095.0,), depth="integer")


def twelve_bits(height: int = 12, width: int = 12, channels: int = 1, seed: int = 0) -> Any:
    """(H, W, C) uint16 below 4,096."""
    return np.random.default_rng(seed).integers(0, 4096, (height, width, channels)).astype(np.uint16)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file.getvalue()


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return f"folder:{root}"


# One set


def test_images_that_use_all_16_bits_are_as_bright_as_8_bit_ones(tmp_path: Path) -> None:
    eight = pixels().astype(np.uint16)
    data = folder(tmp_path, {"a.npy": npy(eight * 257), "b.npy": npy(eight * 257)})
    found, _ = load_data(data)
    assert found.levels is None
    assert np.array_equal(found.images[0].numpy().transpose(1, 2, 0), pixels())  # type: ignore[index]
    assert any("0 to 65,535 becomes 0 to 255" in note for note in found.notes)
    dim, _ = load_data(folder(tmp_path / "dim", {"a.npy": npy(eight * 16), "b.npy": npy(eight * 16)}))
    assert dim.levels is not None


# One image


@pytest.mark.parametrize("form", ["npy", "tiff", "PNG", "PIL TIFF"])
def test_every_format_gives_the_same_values_mapped(form: str) -> None:
    values = twelve_bits()
    content = {
        "npy": lambda: npy(values),
        "tiff": lambda: tiff(values[..., 0]),
        "PNG": lambda: encoded(values[..., 0]),
        "PIL TIFF": lambda: encoded(values[..., 0], "TIFF", compression="tiff_lzw"),
    }[form]()
    (found,), header = decode(io.BytesIO(content), whole(12), None, TWELVE)
    assert np.array_equal(found, np.rint(values / 4095 * 255).astype(np.uint8))
    assert header.dtype == read_header(io.BytesIO(content)).dtype == "uint16"
    assert np.array_equal(read_values(io.BytesIO(content), 1), values)


def sixteen_bit_png(values: Any) -> bytes:
    return bytes(imagecodecs.png_encode(values))


def test_a_png_of_16_bit_colours_keeps_its_lower_bits() -> None:
    values = twelve_bits(channels=3)
    content = sixteen_bit_png(values)
    assert read_header(io.BytesIO(content))[1:] == (3, 12, 12, (), "uint16")
    assert np.array_equal(read_values(io.BytesIO(content), 3), values)
    with pytest.raises(ImageError):
        read_values(io.BytesIO(content[:200]), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_to_a_deep_tiff_as_to_a_shallow_one(orientation: int) -> None:
    values = pixels((9, 9), 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    shallow = encoded(values[..., 0], "TIFF", exif=exif)
    deep = tiff(values[..., 0].astype(np.float32), extratags=[(274, 3, 1, orientation, True)], metadata=None)
    levels = Levels(low=(0.0,), high=(255.0,), depth="floating-point")
    (found,), _ = decode(io.BytesIO(deep), whole(9), None, levels)
    assert np.array_equal(found, decode(io.BytesIO(shallow), whole(9))[0][0])
    wide = tiff(np.zeros((4, 9), np.uint16), extratags=[(274, 3, 1, orientation, True)], metadata=None)
    assert read_header(io.BytesIO(wide))[2:4] == ((9, 4) if orientation >= 5 else (4, 9))


@pytest.mark.parametrize("cut", [Cut(0, 0, 64, 48, 16), Cut(3, 5, 40, 32, 16), Cut(2.5, 1.5, 50, 30, 16)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_levels_survive_the_resize_and_values_are_rounded_once(cut: Cut, channels: int) -> None:
    """A picture that spans 8 of 256 levels: rounded first, its resize would keep steps of a whole level."""
    y, x = np.mgrid[0:64, 0:48]
    smooth = (100 + 8 * np.sin(y / 20) * np.cos(x / 15))[..., None] * np.ones(channels)
    levels = Levels(low=(0.0,) * channels, high=(255.0,) * channels, depth="floating-point")
    (found,), _ = decode(io.BytesIO(npy(smooth.astype(np.float32))), lambda h, w: [cut], None, levels)
    bands = [Image.fromarray(smooth[..., c].astype(np.float32)) for c in range(channels)]
    box = (cut.left, cut.top, cut.left + cut.width, cut.top + cut.height)
    wanted = [np.asarray(band.resize((16, 16), Image.Resampling.BICUBIC, box=box)) for band in bands]
    assert np.abs(found - np.stack(wanted, 2)).max() < 0.51


def test_a_stack_is_remarked_and_its_first_plane_read() -> None:
    planes = twelve_bits(channels=4).transpose(2, 0, 1)
    content = tiff(planes, metadata={"axes": "ZYX"})
    assert read_header(io.BytesIO(content)) == ("TIFF", 1, 12, 12, (FRAMES,), "uint16")
    assert np.array_equal(read_values(io.BytesIO(content), 1)[..., 0], planes[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_a_broken_image(bad: float) -> None:
    values = np.zeros((12, 12, 2), np.float32)
    values[3, 4, 1] = bad
    for content in (npy(values), tiff(values.transpose(2, 0, 1))):
        with pytest.raises(ImageError, match="1 of its 288 values are NaN, infinite or too large; replace them"):
            read_values(io.BytesIO(content), 2)


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.int32, np.float16, np.float32])
def test_grey_and_colour_are_converted_before_they_are_mapped(kind: Any) -> None:
    colour = twelve_bits(channels=3).astype(kind)
    depth: Any = "integer" if np.issubdtype(kind, np.integer) else "floating-point"
    levels = Levels(low=(0.0,), high=(4095.0,), depth=depth)
    (grey,), _ = decode(io.BytesIO(npy(colour)), whole(12), 1, levels)
    luma = colour.astype(float) @ (0.299, 0.587, 0.114)
    assert np.array_equal(grey[..., 0], np.rint(luma / 4095 * 255).astype(np.uint8))
    each = Levels(low=(0.0,) * 3, high=(4095.0, 8190.0, 16380.0), depth=depth)
    (three,), _ = decode(io.BytesIO(npy(colour[..., :1])), whole(12), 3, each)
    assert np.array_equal(three, rounded(each.apply(colour[..., :1].repeat(3, 2))))


# A data set


@pytest.mark.parametrize("memory", [2**31, 0])
def test_a_set_has_one_mapping_from_its_training_images(tmp_path: Path, memory: int) -> None:
    images = [twelve_bits(seed=i) for i in range(6)]
    files = {f"train/a/{i}.png": encoded(image[..., 0]) for i, image in enumerate(images)}
    other = twelve_bits(seed=9) * np.uint16(3)
    spec = folder(tmp_path, files | {"test/a/0.png": encoded(other[..., 0])})
    train, test = load_data(spec, memory=memory)
    assert test is not None
    low, high = np.percentile(np.stack(images), PERCENTILES)
    assert train.levels == test.levels == Levels(low=(low,), high=(high,), depth="integer")
    assert train.in_memory == test.in_memory == (memory > 0)

    def mapped(values: Any) -> Any:
        return torch.from_numpy(np.rint((values[..., 0] - low).clip(0, high - low) / (high - low) * 255))

    for i, image in enumerate(images):
        assert (train.batch([i]).images[0, 0] - mapped(image)).abs().max() <= 1
    assert (test.batch([0]).images[0, 0] - mapped(other)).abs().max() <= 1
    (note,) = [note for note in train.notes if "bits in use" in note]
    assert note.startswith(f"{spec}: 16-bit images with 12 bits in use: values from ")
    assert note.endswith("(0.1% to 99.9% of 6 images) become 0 to 255, channel by channel")
    found = inspect(spec)
    assert found.types == {"uint16": 7}
    assert note in found.notes
    assert found.mean + found.std == pytest.approx(train.mean + train.std)
    assert torch.equal(found.images.batch([0, 1]).images, train.batch([0, 1]).images)


def test_the_sample_is_the_same_every_time_and_spread_over_the_set(tmp_path: Path) -> None:
    spec = folder(
        tmp_path, {f"{i:04}.npy": npy(np.full((2, 2), i, np.uint16)) for i in range(1000)}
    )  # constant images, but not a constant set
    first, _ = load_data(spec)
    second, _ = load_data(spec)
    assert first.levels is not None
    assert first.levels == second.levels
    assert first.levels.low[0] < 6
    assert first.levels.high[0] > 990
    assert any("(0.1% to 99.9% of 200 images)" in note for note in first.notes)


def test_a_set_is_read_by_the_levels_of_another(tmp_path: Path) -> None:
    spec = folder(tmp_path, {f"{i}.npy": npy(twelve_bits(seed=i)) for i in range(3)})
    own, _ = load_data(spec)
    wider = own.statistics._replace(levels=Levels(low=(0.0,), high=(8190.0,), depth="integer"))
    other, _ = load_data(spec, statistics=wider)
    assert other.statistics == wider
    assert other.batch(range(3)).images.max() == 127
    assert not any("become 0 to 255" in note for note in other.notes)


@pytest.mark.parametrize("memory", [2**31, 0])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_constant_set_is_refused_in_one_line(tmp_path: Path, kind: Any, memory: int) -> None:
    spec = folder(tmp_path, {f"{i}.npy": npy(np.full((8, 8), 7, kind)) for i in range(3)})
    for read in (lambda: load_data(spec, memory=memory), lambda: inspect(spec)):
        with pytest.raises(
            UserError, match=r"every value is 7 in .*0\.npy and the others of the 3 images looked at, .* check how"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_one_empty_channel_is_named(tmp_path: Path) -> None:
    values = twelve_bits(channels=3)
    values[..., 1] = 0
    with pytest.raises(UserError, match=r"every value of channel 2 is 0 in .*a\.npy .*leave that channel"):
        load_data(folder(tmp_path, {"a.npy": npy(values)}))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (
            npy(np.ones((8, 8), np.float32)),
            encoded(pixels((8, 8), 1)[..., 0]),
            "0.npy has float32 .*1.npy has uint8",
        ),
        (
            npy(twelve_bits(8, 8)),
            npy(np.ones((8, 8), np.float32)),
            "0.npy has uint16 pixels, .*1.npy has float32 pixels; save all",
        ),
        (npy(np.ones((8, 8), np.int32)), npy(np.ones((8, 8), np.uint8)), "0.npy has int32 .*1.npy has uint8"),
    ],
)
def test_mixed_depths_name_one_of_each(tmp_path: Path, one: bytes, other: bytes, says: str) -> None:
    spec = folder(tmp_path, {"0.npy": one, "1.npy": other})
    with pytest.raises(UserError, match=f"mixed depths: .*{says}") as caught:
        load_data(spec)
    assert inspect(spec).problems == (str(caught.value),)


def test_mixed_channels_of_deep_images_would_stop_training(tmp_path: Path) -> None:
    files = {f"{i}.npy": npy(twelve_bits(channels=3 if i < 3 else 2, seed=i)) for i in range(5)}
    spec = folder(tmp_path, files)
    with pytest.raises(UserError, match=r"mixed channel counts: .* save all images alike"):
        load_data(spec)
    found = inspect(spec)
    assert (found.channels, found.broken) == ({3: 3, 2: 2}, ())
    assert found.problems == ("mixed channel counts that cannot be converted (2 with 2); save all images alike",)


def test_16_bits_beside_8_bits_are_read_at_full_scale_and_it_is_said(tmp_path: Path) -> None:
    values = pixels((12, 12), 1)
    spec = folder(
        tmp_path, {"0.png": encoded(values[..., 0]), "1.png": encoded(values[..., 0].astype(np.uint16) * 257)}
    )
    train, _ = load_data(spec)
    assert train.levels is None
    both = train.batch([0, 1]).images
    assert torch.equal(both[0], both[1])
    assert any("1 of 2 images looked at have 16 bits beside 8-bit ones, so 0 to 65,535" in n for n in train.notes)


@pytest.mark.parametrize("memory", [2**31, 0])
def test_an_image_of_another_depth_that_the_sample_missed_is_named_and_can_be_skipped(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankgap.data.loading.HEADERS", 2)
    files = {f"{i}.npy": npy(twelve_bits(seed=i)) for i in range(5)}
    spec = folder(tmp_path, files | {"3.npy": npy(pixels(channels=1))})
    says = r"3\.npy cannot be read: it has uint8 pixels, where 16-bit or 32-bit integer ones are expected"
    with pytest.raises(BrokenImageError, match=says):
        load_data(spec, memory=memory)
    train, _ = load_data(spec, memory=memory, on_bad_image="skip")
    assert len(train) == 4
    assert Path(train.skipped[0].name).name == "3.npy"


@pytest.mark.parametrize("skip", [False, True])
def test_a_broken_image_in_the_sample_is_named_or_skipped(tmp_path: Path, skip: bool) -> None:
    bad = np.full((12, 12), np.nan, np.float32)
    good = {f"{i}.npy": npy(twelve_bits(seed=i).astype(np.float32)) for i in (1, 2)}
    spec = folder(tmp_path, {"0.npy": npy(bad)} | good)
    if not skip:
        with pytest.raises(BrokenImageError, match=r"0\.npy cannot be read: 144 of its 144 values are NaN"):
            load_data(spec)
        return
    train, _ = load_data(spec, on_bad_image="skip")
    assert len(train) == 2
    assert any("0.1% to 99.9% of 2 images" in note for note in train.notes)
    (tmp_path / "1.npy").unlink()
    (tmp_path / "2.npy").unlink()
    with pytest.raises(UserError, match=r"0\.npy"):
        load_data(spec, on_bad_image="skip")


def test_photographs_of_16_bits_are_cut_from_the_original_s_levels(tmp_path: Path) -> None:
    y, x = np.mgrid[0:300, 0:300]
    ramp = (4000 * (y + x / 32) / 310).astype(np.uint16)
    train, _ = load_data(folder(tmp_path, {f"{i}.png": encoded(ramp) for i in range(2)}), size=32)
    assert not train.in_memory
    assert len(torch.unique(train.batch([0]).images)) > 200


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12, 64])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_any_number_of_channels_in_tiff_and_npy(tmp_path: Path, channels: int, kind: Any) -> None:
    values = twelve_bits(10, 10, channels)
    values = (values // 16).astype(kind) if kind == np.uint8 else values.astype(kind)
    planes = values.transpose(2, 0, 1)
    options = {"planarconfig": "separate"} if channels > 1 else {}
    spec = folder(
        tmp_path,
        {
            "a.npy": npy(values),
            "b.tif": tiff(planes.squeeze(), **options),
            "c.tif": tiff(planes, metadata=None),
            "d.tif": tiff(planes, compression="lzw"),
        },
    )
    train, _ = load_data(spec)
    batch = train.batch(range(4)).images
    assert batch.shape == (4, channels, 10, 10)
    assert all(torch.equal(batch[0], other) for other in batch[1:])
    assert (train.levels is None) == (kind == np.uint8)


def test_folders_of_8_bit_images_have_no_levels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", pixels())
    train, _ = load_data(f"folder:{tmp_path}")
    assert train.levels is None
