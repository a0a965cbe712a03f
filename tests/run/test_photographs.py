"""Runs on photographs: the same views whatever the number of workers, exact resumption, and every reader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import rankgap as rg
from rankgap.cli import main
from rankgap.data import Crops, load_data
from rankgap.data.batch_loader import BatchLoader
from rankgap.data.encoded import BrokenImageError, EncodedImages
from rankgap.data.loading import count_values
from rankgap.errors import UserError
from rankgap.evaluate.batches import batch_for, views_of
from rankgap.run.config import TrainConfig
from rankgap.run.feed import EpochBatches
from rankgap.run.folder import RunFolder
from rankgap.run.preview import preview
from rankgap.run.restored import restore
from rankgap.run.resuming import resumed
from rankgap.run.saved import SavedRun
from rankgap.run.trainer import train
from rankgap.run.work import Work
from rankgap.views import ViewConfig, Views
from tests.data.pictures import photograph

GLOBAL = ViewConfig(blur_p=0.5, vertical_flip=0.5, turn=0.5, interpolation="bilinear")
VIEWS = (GLOBAL, ViewConfig(solarize_p=0.5), ViewConfig(size=16, target=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four photographs in two classes, of different sizes."""
    home = tmp_path_factory.mktemp("photographs")
    for k in range(24):
        (home / "ab"[k % 2]).mkdir(exist_ok=True)
        photograph((60 + k, 90 - k), k % 2).save(home / "ab"[k % 2] / f"{k:02}.jpg", quality=95)
    return home


def config(folder: Path, out: Path, **more: Any) -> TrainConfig:
    options: dict[str, Any] = {"size": 32, "batch_size": 8, "epochs": 2, "rank_every": 1, "protocol": ()}
    options |= {"backbone": "resnet_tiny", "loggers": (), "precision": "32-true", "accelerator": "cpu"}
    options |= more
    return TrainConfig(data=f"folder:{folder}", out=str(out), **options)


def views() -> Views:
    return Views(VIEWS, 32, [0.4] * 3, [0.2] * 3)


def test_views_depend_on_seed_batch_and_process_but_not_on_the_number_of_workers(folder: Path) -> None:
    images, _ = load_data(f"folder:{folder}", size=32)
    work = Work(images=24, batch_size=8, epochs=2, features=128)

    def epoch(seed: int = 1, step: int = 3, workers: int = 0, **more: int) -> list[Crops]:
        batches = EpochBatches(images, work, seed, step, views=views(), **more)
        return list(BatchLoader(batches, workers=workers))

    alone = epoch()
    assert [tuple(crop.shape) for crop in alone[0].crops] == [(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)]
    for other in (epoch(workers=1), epoch(workers=2)):
        for one, two in zip(alone, other, strict=True):
            assert all(map(torch.equal, one.crops, two.crops))
            assert all(map(torch.equal, one.parameters, two.parameters))
    rest = epoch(step=4)
    assert len(rest) == 2
    assert all(map(torch.equal, rest[0].crops, alone[1].crops))
    assert not torch.equal(epoch(seed=2)[0].crops[0], alone[0].crops[0])
    halves = [epoch(process=process, processes=2)[0] for process in (0, 1)]
    assert [len(half.crops[0]) for half in halves] == [4, 4]
    assert not torch.equal(halves[0].parameters.top, halves[1].parameters.top)


def test_the_views_of_a_photograph_are_those_of_the_same_pixels_in_memory(tmp_path: Path) -> None:
    for k in range(4):
        photograph((80, 80), k % 2).save(tmp_path / f"{k}.png")
    photograph((80, 120)).save(tmp_path / "wide.png")
    originals, _ = load_data(f"folder:{tmp_path}", size=32)
    rows = [0, 1, 2, 3]
    pixels = torch.stack([pil_to_tensor(photograph((80, 80), k % 2)) for k in rows])
    ours, seed = views(), 5
    cut = views_of(ours, batch_for(ours, originals, rows, _seeded(seed)), _seeded(0))
    wanted = ours(pixels, None, _seeded(seed))
    for found, expected in zip(cut, wanted, strict=True):
        assert found.shape == expected.shape
        assert ((found - expected) * 0.2).abs().mean() < 0.004  # a level, where the crops are rounded to 8 bits


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps in two epochs, without workers."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(folder, out, workers=0))
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return rg.load_encoder(out).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_with_workers_is_the_run_without(folder: Path, run: Path, tmp_path: Path) -> None:
    train(config(folder, tmp_path / "two", workers=2))
    assert same(weights(tmp_path / "two"), weights(run))
    train(config(folder, tmp_path / "other", workers=0, seed=1))
    assert not same(weights(tmp_path / "other"), weights(run))


def test_a_run_that_meets_a_broken_photograph_is_resumed_exactly(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "copy"
    for path in folder.rglob("*.jpg"):
        (home / path.parent.name).mkdir(parents=True, exist_ok=True)
        (home / path.parent.name / path.name).write_bytes(path.read_bytes())
    images, _ = load_data(f"folder:{folder}", size=32)
    batches = EpochBatches(images, Work(images=24, batch_size=8, epochs=2, features=128), seed=0, step=0)
    assert isinstance(images.images, EncodedImages)
    third = images.images.source.short(int(batches.batches[2][0]))
    whole = (home / third).read_bytes()
    # The set is measured while all are whole; one breaks afterwards.
    measured = count_values(images.images)
    monkeypatch.setattr("rankgap.data.loading.count_values", lambda images: measured)
    (home / third).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenImageError, match=r"cannot be read: .*; repair it .*, then .* --resume$"):
        train(config(home, tmp_path / "run", workers=1))
    assert RunFolder(tmp_path / "run").load_checkpoint().step == 2
    (home / third).write_bytes(whole)
    train(resumed(tmp_path / "run", {}))
    assert same(weights(tmp_path / "run"), weights(run))


def test_a_run_keeps_how_much_of_a_photograph_evaluation_sees(run: Path, folder: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert SavedRun.read(values, "config.yaml").model.centre == 7 / 8
    values["model"]["centre"] = 2.0
    with pytest.raises(UserError, match="centre"):
        SavedRun.read(values, "config.yaml")
    del values["model"]["centre"]  # written before there was one
    assert SavedRun.read(values, "config.yaml").model.centre == 1
    encoder = rg.load_encoder(run)
    assert encoder.centre == 7 / 8
    paths = sorted(folder.rglob("*.jpg"))[:4]
    features = encoder(paths)
    opened = [Image.open(path) for path in paths]
    torch.testing.assert_close(encoder(opened), features, rtol=1e-4, atol=1e-5)
    for image, feature in zip(opened, features, strict=True):
        found = encoder(pil_to_tensor(image))
        assert torch.cosine_similarity(found, feature, dim=0) > 0.999
        image.close()


def test_a_run_whose_photographs_were_squashed_says_that_they_no_longer_are(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    assert restore(run).differences == ()
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["model"]["centre"]  # written before photographs were cut
    file.write_text(yaml.safe_dump(values))
    (said,) = restore(tmp_path / "run").differences
    assert said.startswith(f"views of folder:{folder} are cut out of the originals now")


def test_scores_evaluation_and_inspection_read_the_originals(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run), "--images", "16"]) == 0
    assert main(["evaluate", str(run), "--protocol", "none"]) == 0
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", f"folder:{folder}", "--size", "32", "--out", str(sheet)]) == 0
    assert "32 x 32, cut out of the originals" in " ".join(capsys.readouterr().out.split())
    found = preview(config(folder, tmp_path), images=6)
    assert [tuple(view.shape) for view in found.views] == [(6, 3, 32, 32)] * 2
    for name, picture in zip(found.names, found.pictures, strict=True):
        with Image.open(folder / name) as image:
            bar = (32 - round(32 * min(image.size) / max(image.size))) // 2
            lying = image.width > image.height
        edge = picture[:, :bar] if lying else picture[:, :, :bar]
        assert edge.numel() == 0 or bool((edge == 255).all())
        assert picture[:, 16, 16].min() < 255


def test_photographs_are_trained_on_from_python(tmp_path: Path) -> None:
    images = [photograph((60 + k, 70), k % 2) for k in range(16)]
    short: dict[str, Any] = {"epochs": 1, "batch_size": 8, "size": 32, "protocol": (), "loggers": ()}
    made = rg.train(images, out=tmp_path / "a", accelerator="cpu", **short)
    assert made.encoder(images).shape == (16, 128)
    assert made.encoder.centre == 7 / 8


@pytest.mark.parametrize("view", ["views.1.size=200", "views.0.size=76"])
def test_a_view_larger_than_every_image_is_refused_before_training(
    view: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size", "32", "--batch-size", "8", "--out", str(tmp_path / "a")]
    assert main(["train", "--data", f"folder:{folder}", *flags, "--settings", view]) == 2
    error = capsys.readouterr().err
    assert "no image has more than 75 px on its shorter side: lower it" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "a").exists()
