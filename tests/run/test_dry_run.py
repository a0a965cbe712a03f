"""`--fast-dev-run`: two steps of a recipe as it is published, then an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankgap.cli import main
from rankgap.run.folder import RunFolder
from rankgap.run.recipes import load_recipe, override
from tests.run.test_recipes import RECIPES

FLAGS = ["--data", "digits", "--size", "32", "--batch-size", "4", "--loggers", "none", "--threads", "1"]
FLAGS += ["--accelerator", "cpu", "--precision", "32-true", "--fast-dev-run"]


def dry(out: Path, *flags: str) -> RunFolder:
    assert main(["train", *FLAGS, *flags, "--out", str(out)]) == 0
    return RunFolder(out)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        pytest.param(name, body, marks=pytest.mark.slow if name == "imagenet" else ())
        for name, body in RECIPES
        if name != "cifar"
    ],
)
def test_every_recipe_trains_two_steps_unchanged(name: str, body: str, tmp_path: Path) -> None:
    folder = dry(tmp_path / "a", "--recipe", name, "--method", body)
    saved, published = folder.saved(), load_recipe(name, body)
    assert saved.recipe.optimizer == published.optimizer
    assert (saved.recipe.projector, saved.recipe.prototypes, saved.recipe.teacher) == (
        published.projector,
        published.prototypes,
        published.teacher,
    )
    assert folder.load_checkpoint().step == saved.work.steps == 2
    assert saved.model.backbone == (published.encoder.backbone or "resnet_tiny")
    assert len(folder.metrics()["loss"]) == 2
    results = folder.results()
    assert {"knn", "linear", "erank_features"} <= results.keys()
    assert "verdict" not in results
    assert any(note.startswith("a dry run: two steps on 4 images") for note in saved.notes)
    assert saved.warnings == ()


def test_a_small_run_s_preset_stays_out_of_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dry(tmp_path / "a", "--method", "byol", "--backbone", "resnet_tiny", "--epochs", "300")
    assert folder.saved().recipe.optimizer == load_recipe("cifar", "byol").optimizer
    assert "a dry run: two steps on 4 images" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_s_settings_are_its_own(tmp_path: Path) -> None:
    folder = dry(tmp_path / "a", "--method", "swav", "--settings", "prototypes.count=64", "--accumulate", "2")
    wanted = override(load_recipe("cifar", "swav"), {"prototypes.count": 64})
    assert folder.saved().recipe.prototypes == wanted.prototypes
    assert (folder.saved().work.images, folder.saved().work.steps) == (8, 2)


def test_a_dry_run_takes_what_few_images_there_are(tmp_path: Path) -> None:
    for k, array in enumerate(np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "photos" / f"{k}.png")
    few = ["--data", f"folder:{tmp_path / 'photos'}", "--batch-size", "256", "--accumulate", "2"]
    folder = dry(tmp_path / "a", *few, "--method", "byol")
    assert (folder.saved().work.batch_size, folder.saved().work.steps) == (3, 2)
    assert folder.load_checkpoint().step == 2
