"""Scores of a run's checkpoints, and of the tokens of encoders that give some and encoders that do not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.testing import assert_close

import rankgap
from rankgap.data import ImageSet
from rankgap.evaluate import dse
from rankgap.evaluate.scores import SCORES, RunScores
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore
from rankgap.run.scoring import score_run
from rankgap.run.trainer import train
from rankgap.spectra import between_image_share, position_share
from tests.data.pictures import pixels, write

OF_TOKENS = {name for name, score in SCORES.items() if score.takes == "tokens"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 images of 32 px."""
    home = tmp_path_factory.mktemp("images")
    for i in range(48):
        write(home / f"{i}.png", pixels((32, 32), seed=i))
    return f"folder:{home}"


def scored(data: str, out: Path, **config: Any) -> RunScores:
    fields: dict[str, Any] = {
        "batch_size": 16,
        "epochs": 1,
        "loggers": (),
        "protocol": (),
        "precision": "32-true",
        "size": 32,
    }
    train(TrainConfig(data=data, out=str(out), **(fields | config)))
    return score_run(RunFolder(out), images=32, repeats=2)


@pytest.mark.parametrize(
    ("backbone", "tokens"), [("resnet_tiny", 16), ("vit_tiny_patch16_224", 4), ("convnext_atto", 1)]
)
def test_tokens_are_patches_or_places_of_a_feature_map(
    backbone: str, tokens: int, data: str, tmp_path: Path
) -> None:
    found = scored(data, tmp_path / "run", backbone=backbone)
    rated = found.rated["last"]
    said = [note for note in found.notes if "the scores of tokens are left out" in note]
    if tokens == 1:
        assert not OF_TOKENS & rated.keys()
        assert said == [
            "the scores of tokens are left out: the encoder's feature map has one place for a view of 32 px"
        ]
        assert json.loads((tmp_path / "run" / "scores.json").read_text())["notes"] == list(found.notes)
        return
    assert not said
    assert rated.keys() == SCORES.keys()
    plan = restore(tmp_path / "run")
    z = rankgap.load_encoder(tmp_path / "run", tokens=True)(stack(plan.train.sample(32)))
    assert z.shape[1] == tokens
    for name, function in (("DSE", dse), ("between-image share", between_image_share)):
        assert rated[name].value == pytest.approx(float(function(z)), rel=1e-4)
    assert_close(rated["position share"].value, float(position_share(z)), rtol=1e-4, atol=0)
    assert math.isnan(rated["log LID"].value)  # it needs more than 64 images


def stack(images: ImageSet) -> Tensor:
    return images.batch(range(len(images))).images


def test_an_encoder_without_tokens_keeps_its_other_scores(data: str, tmp_path: Path) -> None:
    """CrossViT's forward_features gives a list of two vectors, from patches of two sizes."""
    more = {"size": 240, "limit": 8, "batch_size": 4, "fast_dev_run": True}
    found = scored(data, tmp_path / "run", backbone="crossvit_9_240", **more)
    (note,) = (note for note in found.notes if "the scores of tokens are left out" in note)
    assert "expected the forward_features of CrossVit to give tokens (B, N, D)" in note
    assert math.isfinite(found.rated["last"]["RankMe"].value)
    assert not OF_TOKENS & found.rated["last"].keys()
