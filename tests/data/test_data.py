from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image
from torch.testing import assert_close

from rankgap.data import inspect, load_data
from rankgap.data.decoding import ImageError, read_header
from rankgap.data.splits import Statistics
from rankgap.errors import UserError
from tests.data.pictures import chw, encoded, pixels, squashed, write

# Folders


def test_any_nested_folder_is_read_without_labels_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = ["b.png", "a/deep/er/c.png", "a/z.bmp"]
    for i, name in enumerate(names):
        write(tmp_path / name, pixels(seed=i))
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "no.png", pixels())
    (tmp_path / "notes.txt").write_text("not an image")
    train, test = load_data(f"folder:{tmp_path}")
    assert test is None
    assert train.labels is None
    batch = train.batch(range(3))
    assert batch.labels is None
    for image, i in zip(batch.images, (1, 2, 0), strict=True):  # a/deep/er/c.png, a/z.bmp, b.png
        assert torch.equal(image, chw(pixels(seed=i)))
    assert any("1 other file is ignored (1 .txt)" in note for note in train.notes)


def test_class_folders_are_labels_for_evaluation(tmp_path: Path) -> None:
    for i, name in enumerate(["cat/1.png", "dog/1.png", "dog/2.png"]):
        write(tmp_path / name, pixels(seed=i))
    train, test = load_data(f"folder:{tmp_path}")
    assert test is None
    assert train.classes == ["cat", "dog"]
    assert train.batch([2, 0]).labels is not None
    assert train.batch([2, 0]).labels.tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("held_out", ["test", "val", "Validation"])
def test_train_and_test_folders_are_the_splits(tmp_path: Path, held_out: str) -> None:
    for part, count in (("train", 3), (held_out, 2)):
        for label in ("cat", "dog"):
            for i in range(count):
                write(tmp_path / part / label / "more" / f"{i}.png", pixels(seed=i))
    write(tmp_path / "extra" / "x.png", pixels())
    train, test = load_data(f"folder:{tmp_path}")
    assert test is not None
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == test.classes == ["cat", "dog"]
    assert (test.mean, test.std) == (train.mean, train.std)
    assert any("1 image in another place is ignored" in note for note in train.notes)


def test_a_link_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", pixels())
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(load_data(f"folder:{tmp_path}")[0]) == 1


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in it"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="there is no folder"):
        load_data(f"folder:{tmp_path / 'no'}")
    with pytest.raises(UserError, match="write folder:"):
        load_data(str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_data("cifar11")


def test_mixed_channel_counts_name_one_of_each_and_are_converted_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "a.png", pixels())
    write(tmp_path / "b.png", pixels(channels=1))
    with pytest.raises(UserError, match=r"b\.png has 1, .*a\.png has 3; pass --channels 3"):
        load_data(f"folder:{tmp_path}")
    colour = load_data(f"folder:{tmp_path}", channels=3)[0].batch([1]).images
    assert torch.equal(colour, chw(pixels(channels=1)).expand(3, -1, -1)[None])
    grey = load_data(f"folder:{tmp_path}", channels=1)[0].batch([0]).images
    assert torch.equal(grey[0, 0], torch.from_numpy(np.array(Image.fromarray(pixels()).convert("L"))))


@pytest.mark.parametrize("memory", [2**31, 0])
def test_a_broken_image_is_named_by_its_path(tmp_path: Path, memory: int) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", pixels())
    (tmp_path / "1.png").write_bytes(encoded(pixels())[:150])
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        load_data(f"folder:{tmp_path}", memory=memory)[0].batch([0, 1, 2])
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png cannot be read: an empty file"):
        load_data(f"folder:{tmp_path}", memory=memory)


def test_images_that_exceed_memory_are_decoded_batch_by_batch_to_the_same_pixels(tmp_path: Path) -> None:
    for i in range(70):
        write(tmp_path / f"{i:03}.png", pixels(size=(10 + i % 3, 12), seed=i))
    held, _ = load_data(f"folder:{tmp_path}", size=11)
    read, _ = load_data(f"folder:{tmp_path}", size=11, memory=1000)
    assert (held.in_memory, read.in_memory) == (True, False)
    assert any("each batch is decoded when it is needed" in note for note in read.notes)
    order = [5, 69, 0, 33]
    first, second = held.batch(order), read.batch(order)
    assert torch.equal(first.images, second.images)
    assert first.sizes is not None
    assert second.sizes is not None
    assert first.sizes.tolist() == second.sizes.tolist() == [[12, 12], [10, 12], [10, 12], [10, 12]]
    assert (held.mean, held.std) == (read.mean, read.std)


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path: Path) -> None:
    values = np.stack([pixels(seed=i) for i in range(5)])
    for i, image in enumerate(values):
        write(tmp_path / f"{i}.png", image)
    train, _ = load_data(f"folder:{tmp_path}")
    assert_close(train.mean, tuple((values / 255).mean((0, 1, 2)).tolist()), rtol=1e-9, atol=0)
    assert_close(train.std, tuple((values / 255).std((0, 1, 2)).tolist()), rtol=1e-9, atol=0)


def test_a_constant_channel_is_centred_and_not_divided_by_zero(tmp_path: Path) -> None:
    values = pixels()
    values[..., 2] = 7
    write(tmp_path / "a.png", values)
    train, _ = load_data(f"folder:{tmp_path}")
    assert train.std[2] == 1.0
    assert any("constant" in note for note in train.notes)


def test_limit_takes_the_first_of_a_seeded_shuffle() -> None:
    whole, _ = load_data("digits")
    some, test = load_data("digits", limit=50, seed=3)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(3))[:50]
    assert torch.equal(some.batch(range(50)).images, whole.batch(order).images)
    assert torch.equal(
        load_data("digits", limit=20, seed=3)[0].batch(range(20)).images, some.batch(range(20)).images
    )
    assert test is not None
    assert len(test) == 355


# Decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(pixels((8, 8)), exif=exif)
    found, _ = squashed(io.BytesIO(content), 8)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(image)))


def test_transparency_is_laid_on_white_and_palettes_become_colour() -> None:
    values = np.zeros((4, 4, 4), np.uint8)
    values[:2, :, 3] = 255
    found, header = squashed(io.BytesIO(encoded(values)), 4)
    assert header.channels == 3
    assert found[:2].max() == 0
    assert found[2:].min() == 255
    palette = encoded(Image.fromarray(pixels((4, 4))).convert("P"), "GIF")
    assert squashed(io.BytesIO(palette), 4)[0].shape == (4, 4, 3)


def test_sixteen_bits_without_levels_become_eight_by_full_scale(tmp_path: Path) -> None:
    values = np.array([[0, 257], [65535, 32896]], np.uint16)
    assert squashed(io.BytesIO(encoded(values)), 2)[0][..., 0].tolist() == [[0, 1], [255, 128]]
    np.save(tmp_path / "a.npy", np.stack([values] * 5, -1))
    with (tmp_path / "a.npy").open("rb") as array:
        assert read_header(array) == ("NPY", 5, 2, 2, (), "uint16")
    unmapped = Statistics((0.0,) * 5, (1.0,) * 5)
    train, _ = load_data(f"folder:{tmp_path}", statistics=unmapped)
    assert train.batch([0]).images[0, 4].tolist() == [[0, 1], [255, 128]]


def test_a_large_image_is_shrunk_with_antialias() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found, header = squashed(io.BytesIO(encoded(stripes)), 16)
    assert (header.height, header.width) == (64, 64)
    assert np.abs(found.astype(int) - 127).max() <= 12


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\x93NUMPY\x01", b"text"])
def test_a_file_that_is_not_an_image_raises_an_image_error_and_nothing_else(content: bytes) -> None:
    for look in (read_header, lambda file: squashed(file, 8)):
        with pytest.raises(ImageError):
            look(io.BytesIO(content))


# Parquet


def parquet(path: Path, rows: Sequence[bytes], labels: Sequence[int] | None, names: Sequence[str] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"img": [{"bytes": row, "path": None} for row in rows]}
    features: dict[str, Any] = {"img": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = list(labels)
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    table = pa.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_folder_of_parquet_files_in_the_hub_s_layout(tmp_path: Path) -> None:
    rows = [encoded(pixels(seed=i)) for i in range(5)]
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:2], [0, 1], ["cat", "dog"])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[2:3], [1], ["cat", "dog"])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows[3:], [1, 0], ["cat", "dog"])
    train, test = load_data(f"hf:{tmp_path}")
    assert test is not None
    assert (len(train), len(test)) == (3, 2)
    assert train.classes == ["cat", "dog"]
    batch = train.batch([2, 0])
    assert torch.equal(batch.images[0], chw(pixels(seed=2)))
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]


def test_parquet_without_labels_and_with_a_broken_row(tmp_path: Path) -> None:
    rows = [encoded(pixels(seed=i)) for i in range(3)]
    parquet(tmp_path / "train.parquet", rows, None)
    train, test = load_data(f"hf:{tmp_path}")
    assert (train.labels, test) == (None, None)
    parquet(tmp_path / "train.parquet", [rows[0], rows[1][:50]], None)
    with pytest.raises(UserError, match="row 1"):
        load_data(f"hf:{tmp_path}")


def test_parquet_that_is_missing_broken_or_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.parquet files"):
        load_data(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="there is no folder"):
        load_data("hf:./nowhere")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="expected a column of images, got text"):
        load_data(f"hf:{tmp_path}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=str(tmp_path)):
        load_data(f"hf:{tmp_path}")


def test_large_parquet_goes_through_the_cache_of_datasets_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets of the Hub take the same path; here it is tested on local files."""
    import datasets

    monkeypatch.setattr("rankgap.data.hub._IN_MEMORY", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [encoded(pixels(seed=i)) for i in range(3)]
    parquet(tmp_path / "set" / "train.parquet", rows[:2], [0, 1], ["cat", "dog"])
    parquet(tmp_path / "set" / "test.parquet", rows[2:], [1], ["cat", "dog"])
    train, test = load_data(f"hf:{tmp_path / 'set'}")
    assert test is not None
    assert train.classes == ["cat", "dog"]
    assert torch.equal(test.batch([0]).images[0], chw(pixels(seed=2)))
    assert torch.equal(train.batch([1]).images[0], chw(pixels(seed=1)))


# CIFAR, in torchvision's layout


def test_cifar_is_read_from_its_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    content: dict[str, bytes] = {}
    for i in range(6):
        name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
        values = np.random.default_rng(i).integers(0, 256, (4, 3072), dtype=np.uint8)
        content[name] = pickle.dumps({"data": values, "labels": [i % 10] * 4})
    content["batches.meta"] = pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    sums = {}
    for name, data in content.items():
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setenv("RANKGAP_DATA", str(tmp_path))
    train, test = load_data("cifar10")
    assert test is not None
    assert (len(train), len(test), train.size, train.channels) == (20, 4, 32, 3)
    assert train.mean == (0.4914, 0.4822, 0.4465)
    first = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)[0]
    assert torch.equal(train.batch([0]).images[0], torch.from_numpy(first.reshape(3, 32, 32)))


def test_cifar_that_cannot_be_downloaded_names_the_file_to_provide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setenv("RANKGAP_DATA", str(tmp_path))
    monkeypatch.setattr(CIFAR100, "url", "file:///nowhere/cifar.tar.gz")
    with pytest.raises(UserError, match=r"cannot be downloaded .*cifar-100-python.tar.gz"):
        load_data("cifar100")


# Inspection


def test_inspect_counts_everything_and_reports_what_training_would_refuse(tmp_path: Path) -> None:
    values = [pixels(size=(10, 20), seed=i) for i in range(4)]
    for i, image in enumerate(values):
        write(tmp_path / "train" / f"{i}.png", image)
    write(tmp_path / "train" / "again.png", values[0])
    write(tmp_path / "train" / "grey.png", pixels(size=(30, 20), channels=1))
    write(tmp_path / "test" / "leak.png", values[1])
    (tmp_path / "train" / "torn.jpg").write_bytes(encoded(values[0], "JPEG")[:200])
    (tmp_path / "train" / "empty.png").write_bytes(b"")
    found = inspect(f"folder:{tmp_path}")
    assert (found.train, found.test) == (8, 1)
    assert sorted(Path(b.name).name for b in found.broken) == ["empty.png", "torn.jpg"]
    assert found.sizes == {(10, 20): 6, (30, 20): 1}
    assert (found.side(0), found.side(1)) == ((10, 10.0, 30), (20, 20.0, 20))
    assert found.channels == {3: 6, 1: 1}
    assert found.formats == {"PNG": 7}
    assert (found.duplicates, found.leaked) == (1, 1)
    assert any("--channels 3" in p for p in found.problems)
    assert len(found.images) == 6
    names, sample = found.sample(100)
    batch = sample.batch(range(6))
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png", "again.png", "grey.png"]
    assert batch.images.shape[:2] == (6, 3)
    whole = load_data(f"folder:{tmp_path}", channels=3, on_bad_image="skip")[0]
    for name, image in zip(names, batch.images, strict=True):
        assert torch.equal(image, whole.batch([sorted(names).index(name)]).images[0])
    assert inspect(f"folder:{tmp_path}", channels=3).problems == ()  # broken images can be skipped


def test_inspect_gives_the_statistics_that_training_will_use(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"{i}.png", pixels(seed=i))
    found, (train, _) = inspect(f"folder:{tmp_path}"), load_data(f"folder:{tmp_path}")
    assert_close(found.mean, train.mean)
    assert_close(found.std, train.std)
    assert found.problems == ()


def test_inspect_of_nothing_readable_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its images can be read; .*a\.png: an empty file"):
        inspect(f"folder:{tmp_path}")
    np.save(tmp_path / "b.npy", np.zeros((4, 4, 5), np.uint8))
    np.save(tmp_path / "c.npy", np.zeros((4, 4, 2), np.uint8))
    assert any("cannot be converted (1 with 2, 1 with 5)" in p for p in inspect(f"folder:{tmp_path}").problems)
