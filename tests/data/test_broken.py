"""Images that cannot be read: named, skipped, met in worker processes; and what else is worth a note."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankgap.data import inspect, load_data
from rankgap.data.batch_loader import BatchLoader
from rankgap.data.image_set import Batch, ImageSet
from rankgap.data.waiting import Waiting
from rankgap.errors import UserError
from tests.data.pictures import encoded, pixels, write


class Pairs(torch.utils.data.Dataset[Batch]):
    """Batches of two images."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images) // 2

    def __getitem__(self, index: int) -> Batch:
        return self.images.batch([2 * index, 2 * index + 1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two classes, of which one is empty and one is cut behind its header."""
    for i in range(6):
        write(tmp_path / "ab"[i % 2] / f"{i}.jpg", pixels((64, 64), seed=i))
    (tmp_path / "a" / "2.jpg").write_bytes(b"")
    whole = (tmp_path / "b" / "3.jpg").read_bytes()
    (tmp_path / "b" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.mark.parametrize("memory", [2**31, 0])
def test_broken_images_are_skipped_when_asked_counted_and_named(folder: Path, memory: int) -> None:
    train, _ = load_data(f"folder:{folder}", memory=memory, on_bad_image="skip")
    assert train.in_memory is (memory > 0)
    assert len(train) == 4
    assert [Path(image.name).name for image in train.skipped] == ["2.jpg", "3.jpg"]
    assert train.skipped[0].reason == "an empty file"
    assert any("2 images cannot be read and are skipped" in note and "2.jpg" in note for note in train.notes)
    batch = train.batch(range(4))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1]
    (folder / "a/2.jpg").unlink()
    notes = load_data(f"folder:{folder}", memory=memory, on_bad_image="skip")[0].notes
    assert any("1 image is skipped: " in note and "3.jpg cannot be read" in note for note in notes)
    (folder / "b/3.jpg").unlink()
    assert torch.equal(batch.images, load_data(f"folder:{folder}")[0].batch(range(4)).images)


def test_a_set_of_broken_images_alone_is_an_error_even_if_they_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png cannot be read: an empty file"):
        load_data(f"folder:{tmp_path}", on_bad_image="skip")
    write(tmp_path / "b.png", pixels())
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    with pytest.raises(UserError, match="none of its images can be read"):
        load_data(f"folder:{tmp_path}", on_bad_image="skip")


def test_whole_images_are_found_where_all_that_are_looked_at_first_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankgap.data.loading.HEADERS", 2)
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"")
    write(tmp_path / "4.png", pixels())
    assert len(load_data(f"folder:{tmp_path}", on_bad_image="skip")[0]) == 1
    found = inspect(f"folder:{tmp_path}")
    assert (found.train, len(found.broken), len(found.images)) == (5, 4, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_the_same_one_line_with_and_without_workers(folder: Path, workers: int) -> None:
    (folder / "a" / "2.jpg").unlink()
    (folder / "a" / "4.jpg").unlink()
    train, _ = load_data(f"folder:{folder}", size=2, memory=2**31, on_bad_image="skip")
    images = train.batch(range(len(train))).images
    assert len(images) == 3
    # The set is read while all are whole; one breaks later.
    cut = (folder / "b" / "3.jpg").read_bytes()
    write(folder / "b" / "3.jpg", pixels((64, 64)))
    read, _ = load_data(f"folder:{folder}", memory=0)
    (folder / "b" / "3.jpg").write_bytes(cut)
    with pytest.raises(UserError) as caught:
        list(BatchLoader(Pairs(read), workers=workers))
    assert str(caught.value).startswith(f"{folder / 'b' / '3.jpg'} cannot be read: ")
    assert "\n" not in str(caught.value)


def test_workers_give_the_same_batches(folder: Path) -> None:
    train, _ = load_data(f"folder:{folder}", memory=0, on_bad_image="skip")
    found = [[batch.images for batch in BatchLoader(Pairs(train), workers=n)] for n in (0, 2)]
    assert len(found[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_not_read_as_it_is_is_noted(tmp_path: Path) -> None:
    grey = [pixels((12, 12), 1, seed=i).squeeze(-1).astype(np.uint16) * 16 for i in range(3)]  # 12 bits
    for i, values in enumerate(grey):
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    for notes in (load_data(f"folder:{tmp_path}")[0].notes, inspect(f"folder:{tmp_path}").notes):
        assert any(": 16-bit images with 12 bits in use: values from " in note for note in notes)
    frames = [Image.fromarray(pixels(seed=i)) for i in range(2)]
    (tmp_path / "0.png").write_bytes(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    (tmp_path / "1.png").write_bytes(encoded(pixels(channels=4)))
    (tmp_path / "2.png").unlink()
    for notes in (load_data(f"folder:{tmp_path}")[0].notes, inspect(f"folder:{tmp_path}").notes):
        assert any("1 of 2 images looked at have more frames or pages" in note for note in notes)
        assert any("1 of 2 images looked at have transparency" in note for note in notes)
        assert not any("bits in use" in note for note in notes)


def test_waiting_is_said_after_two_seconds_and_by_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Waiting("reading", 3000) as waiting:
        waiting.add(1000)
        assert capsys.readouterr().err == ""
        clock[0] = 2.5
        waiting.add(1000)
        assert capsys.readouterr().err == "reading: 2,000 of 3,000 ...\n"
        clock[0] = 20.0
        waiting.add(900)
        assert capsys.readouterr().err == ""
        clock[0] = 40.0
        waiting.add(900)
        assert capsys.readouterr().err == "reading: 3,000 of 3,000 ...\n"
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
    with Waiting("reading") as waiting:
        clock[0] = 99.0
        waiting.add(1)
    assert capsys.readouterr().err == ""
