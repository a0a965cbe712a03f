from __future__ import annotations

from pathlib import Path

import pytest

from rankgap.data import load_data
from rankgap.data.encoded import BrokenImageError
from rankgap.run.config import TrainConfig, file_name
from rankgap.run.folder import RunFolder
from rankgap.run.plan import Plan
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from tests.data.pictures import pixels, write


def config(folder: Path, out: Path, **more: object) -> TrainConfig:
    return TrainConfig(
        data=f"folder:{folder}",
        backbone="resnet_tiny",
        epochs=2,
        batch_size=8,
        loggers=(),
        protocol=(),
        precision="32-true",
        accelerator="cpu",
        out=str(out),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen images, of which one is cut behind its header."""
    for i in range(16):
        write(tmp_path / "data" / f"{i:02}.jpg", pixels((64, 64), seed=i))
    whole = (tmp_path / "data" / "07.jpg").read_bytes()
    (tmp_path / "data" / "07.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "data"


@pytest.mark.parametrize("workers", [0, 1])
def test_training_that_meets_a_broken_image_names_it_and_goes_on_once_it_is_mended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    assert load_data.__kwdefaults__ is not None
    monkeypatch.setitem(load_data.__kwdefaults__, "memory", 0)
    monkeypatch.setattr("rankgap.data.loading._STATISTICS", 3)
    run = tmp_path / "run"
    with pytest.raises(
        BrokenImageError, match=r"07\.jpg cannot be read: .*; repair it .*, then .* --resume$"
    ) as caught:
        train(config(folder, run, workers=workers))
    assert len(str(caught.value)) < 600
    write(folder / "07.jpg", pixels((64, 64)))
    plans: list[Plan] = []
    assert train(resumed(run, {}), announce=plans.append)["loss"] is not None
    assert "other sizes" in plans[0].differences[0]


def test_skipped_images_are_listed_in_the_run_folder(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    train(config(folder, run.path, on_bad_image="skip", workers=0))
    (line,) = (run.path / "skipped_images.txt").read_text().splitlines()
    assert line.startswith(f"{folder / '07.jpg'} cannot be read: ")
    assert run.saved().run.on_bad_image == "skip"
    assert run.saved().work.images == 15


def test_the_name_of_a_run_folder_is_as_long_as_file_systems_allow() -> None:
    assert file_name("byol: a b") == "byol-a-b"
    first, second = (file_name("é" * 300 + end) for end in "ab")
    assert first != second
    assert len(first.encode()) <= 120
    assert TrainConfig(data="folder:" + "x" * 300, seed=7).path.name.endswith("-seed7")
