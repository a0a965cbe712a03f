"""Runs on images of more than 8 bits a channel, or of other channels than grey and RGB."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

import rankgap as rg
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.errors import UserError
from rankgap.evaluate import extract_features
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore
from tests.small_run import FLAGS

FAST = [*FLAGS, "--epochs", "1", "--protocol", "knn"]
SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 8, "loggers": (), "protocol": ()}


def picture(channels: int, seed: int) -> Any:
    """(24, 24, C) in [0, 1], each channel with a range of its own."""
    coarse = np.random.default_rng(seed).random((3, 3, channels)).astype(np.float32)
    bands = [Image.fromarray(coarse[..., c]).resize((24, 24), Image.Resampling.BILINEAR) for c in range(channels)]
    return np.stack([np.asarray(band) for band in bands], 2) * np.linspace(1, 0.2, channels, dtype=np.float32)


def microscope(seed: int) -> Any:
    """12 bits in 16."""
    return (picture(1, seed) * 3000 + 500).round().astype(np.uint16)


def satellite(seed: int) -> Any:
    return picture(5, seed) * 4 - 1


def save_png(path: Path, values: Any) -> None:
    Image.fromarray(values[..., 0]).save(path)


def save_tiff(path: Path, values: Any) -> None:
    tifffile.imwrite(path, values.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"})


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Path, Any], None], str]] = {
    "12 bits in 16": (microscope, save_png, "png"),
    "5 channels of floats": (satellite, save_tiff, "tif"),
}


@pytest.fixture(scope="module", params=KINDS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of two splits, and a run on them."""
    make, save, suffix = KINDS[request.param]
    home = tmp_path_factory.mktemp("deep")
    for i in range(32):
        path = home / "data" / ("train" if i < 24 else "test") / "ab"[i % 2] / f"{i:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, make(i))
    assert main(["train", *FAST, "--data", f"folder:{home / 'data'}", "--out", str(home / "run")]) == 0
    return home


def originals(home: Path, part: str) -> list[Any]:
    paths = sorted((home / "data" / part).rglob("*.*"))
    return [
        values[..., None] if (values := imread(path)).ndim == 2 else values.transpose(1, 2, 0) for path in paths
    ]


def imread(path: Path) -> Any:
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


def test_the_run_keeps_the_levels_of_its_training_images(home: Path) -> None:
    saved = RunFolder(home / "run").saved()
    low, high = np.percentile(np.stack(originals(home, "train")).astype(float), (0.1, 99.9), axis=(0, 1, 2))
    assert saved.model.levels is not None
    assert saved.model.levels.low == pytest.approx(low)
    assert saved.model.levels.high == pytest.approx(high)
    notes = " ".join(saved.notes + tuple(restore(home / "run").train.notes))
    assert notes.count("saturation, hue, greyscale and solarisation are left out") == (saved.model.channels == 5)


def test_files_and_arrays_have_the_features_of_the_run_s_evaluation(home: Path) -> None:
    encoder = rg.load_encoder(home / "run")
    plan = restore(home / "run")
    test = plan.tests["test"]
    assert test.levels == plan.train.levels == encoder.levels
    expected = extract_features(
        encoder.encoder, test, size=plan.size, mean=plan.train.mean, std=plan.train.std
    ).features
    paths = sorted((home / "data" / "test").rglob("*.*"))
    assert_close(encoder(paths), expected, rtol=1e-4, atol=1e-5)
    arrays = originals(home, "test")
    stack = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    for images in (arrays, stack, list(stack), np.stack(arrays)):
        assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert_close(encoder(stack[0]), expected[0], rtol=1e-4, atol=1e-5)


def test_many_deep_images_are_mapped_a_batch_at_a_time(home: Path) -> None:
    encoder = rg.load_encoder(home / "run")
    images = np.concatenate(originals(home, "test") * 64)  # 512 of them
    images = images.reshape(512, 24, *images.shape[1:])
    mapped = 512 * images[0].size * 4  # bytes in float32
    tracemalloc.start()
    try:
        encoder(images)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < mapped


def test_images_of_another_depth_are_refused_by_the_encoder(home: Path) -> None:
    encoder = rg.load_encoder(home / "run")
    assert encoder.levels is not None
    shape = (2, len(encoder.mean), 24, 24)
    with pytest.raises(UserError, match=r"it has uint8 pixels, where .* ones are expected; save all images alike"):
        encoder(torch.zeros(shape, dtype=torch.uint8))
    floats = encoder.levels.depth == "floating-point"
    with pytest.raises(UserError, match=r"pixels, where .* ones are expected"):
        encoder(torch.zeros(shape, dtype=torch.int32 if floats else torch.float64))
    if floats:
        images = torch.rand(shape)
        images[0, :, 0, 0] = torch.nan
        with pytest.raises(UserError, match="5 of its 5,760 values are NaN, infinite or too large"):
            encoder(images)


def brighter(home: Path, to: Path) -> str:
    """The same data, twice as bright, under the same names."""
    _, save, suffix = KINDS["12 bits in 16" if any((home / "data").rglob("*.png")) else "5 channels of floats"]
    for path in (home / "data").rglob(f"*.{suffix}"):
        new = to / path.relative_to(home / "data")
        new.parent.mkdir(parents=True, exist_ok=True)
        values = imread(path) * 2
        save(new, values[..., None] if values.ndim == 2 else values.transpose(1, 2, 0))
    return f"folder:{to}"


def test_evaluation_scores_and_resuming_take_the_saved_levels(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    levels = RunFolder(home / "run").saved().model.levels
    data = brighter(home, tmp_path / "bright")
    own, _ = load_data(data)
    assert own.levels != levels
    run = str(tmp_path / "run")
    plan = restore(run, data=data)
    assert plan.train.levels == plan.tests["test"].levels == levels
    assert main(["evaluate", run, "--data", data]) == 0
    assert main(["score", run, "--images", "8", "--data", data]) == 0
    assert main(["train", "--resume", "--out", run, "--epochs", "2", "--data", data]) == 0
    assert RunFolder(Path(run)).saved().model.levels == levels
    assert "become 0 to 255" not in capsys.readouterr().out


def test_further_evaluation_sets_are_read_by_the_training_set_s_levels(home: Path, tmp_path: Path) -> None:
    bright = brighter(home, tmp_path / "bright")
    out = tmp_path / "run"
    flags = [*FAST, "--data", f"folder:{home / 'data'}", "--eval", f"bright={bright}", "--out", str(out)]
    assert main(["train", *flags]) == 0
    plan = restore(out)
    assert plan.tests["bright"].levels == plan.train.levels
    # By levels of its own, the brighter set would have the same pixels.
    twice, once = (plan.tests[name].batch(range(8)).images.float() for name in ("bright", "test"))
    assert (twice - once).abs().mean() > 10


def test_a_run_from_before_levels_is_read_without_them(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    channels = values["model"]["channels"]
    del values["model"]["levels"]
    config.write_text(yaml.safe_dump(values))
    encoder = rg.load_encoder(tmp_path / "run")
    assert encoder.levels is None
    assert encoder(torch.zeros(2, channels, 24, 24, dtype=torch.uint8)).shape == (2, 128)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"low": [0.0] * 7, "high": [1.0] * 7, "depth": "integer"}, "one pair of numbers for each of the"),
        ({"low": [2.0], "high": [1.0], "depth": "integer"}, "low < high"),
        ({"low": [0.0], "high": [1.0], "depth": "8-bit"}, "'8-bit'"),
    ],
)
def test_levels_that_fit_nothing_are_named(home: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["model"]["levels"] = change
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=says):
        rg.load_encoder(tmp_path / "run")


@pytest.mark.parametrize("shape", [(24, 20, 20, 5), (24, 20, 26, 5), (24, 20, 20), (24, 3, 20, 20)])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_deep_arrays_are_trained_on_from_python(shape: tuple[int, ...], kind: Any, tmp_path: Path) -> None:
    images = (np.random.default_rng(0).random(shape) * 3000).astype(kind)
    run = rg.train(images, model="resnet_tiny", out=tmp_path / "run", **SHORT)
    levels = RunFolder(run.folder).saved().model.levels
    assert levels is not None
    low, high = np.percentile(images, (0.1, 99.9))
    assert all(abs(each - low) < 30 for each in levels.low)
    assert all(abs(each - high) < 30 for each in levels.high)
    assert run.encoder(images).shape == (24, 128)


def test_a_stack_is_trained_on_as_files_of_it_are(tmp_path: Path) -> None:
    images = [microscope(i) for i in range(24)]
    (tmp_path / "files").mkdir()
    for i, image in enumerate(images):
        save_png(tmp_path / "files" / f"{i:02}.png", image)
    given = rg.train(np.stack(images), model="resnet_tiny", out=tmp_path / "given", **SHORT)
    named = rg.train(f"folder:{tmp_path / 'files'}", model="resnet_tiny", out=tmp_path / "named", **SHORT)
    assert RunFolder(given.folder).saved().model == RunFolder(named.folder).saved().model
    assert_close(given.encoder(images), named.encoder(images))


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_constant_set_is_one_line_before_anything_is_trained(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for i in range(16):
        tifffile.imwrite(tmp_path / "data" / f"{i}.tif", np.full((16, 16), 300, kind))
    assert main(["train", *FAST, "--data", f"folder:{tmp_path / 'data'}", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "every value is 300 in " in line
    assert "check how the files were written" in line
    assert not (tmp_path / "run").exists()
