"""Embedding a data set: the features of every format, splits and labels, and what is refused."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import timm
import timm.models._hub
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch.testing import assert_close

import rankgap as rg
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.embed import embed_images, read_features
from rankgap.embed.folding import fold_batch_norms
from rankgap.errors import UserError
from rankgap.evaluate import extract_features
from rankgap.model.backbones import build_encoder
from rankgap.show.embedding import EmbeddingProgress
from rankgap.show.terminal import console
from tests.embed.photo_run import NAMES, photo, trained

FORMATS = [".parquet", ".npy", ".safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "run"
    short = ["--epochs", "1", "--batch-size", "64", "--limit", "128", "--protocol", "none"]
    assert main(["train", "--data", "digits", *short, "--out", str(out)]) == 0
    return out


def embedded(run: Path | str, data: str, out: Path, **options: Any) -> Path:
    embed_images(run, data, out, **options).run()
    return out


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_features_of_load_encoder_with_names_and_labels(
    suffix: str, run: Path, tmp_path: Path
) -> None:
    found = read_features(embedded(run, f"folder:{run.parent / 'photos'}", tmp_path / f"f{suffix}", batch_size=16))
    assert found.listing.names == NAMES
    assert found.listing.labels == [name.partition("/")[0] for name in NAMES]
    expected = rg.load_encoder(run)([run.parent / "photos" / name for name in NAMES])
    assert_close(torch.tensor(found.features), expected, rtol=1e-4, atol=1e-5)
    assert found.record.rows == {"train": len(NAMES)}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"f{suffix}"} | ({"f.json"} if suffix == ".npy" else set())


def test_other_libraries_read_the_files(run: Path, tmp_path: Path) -> None:
    data = f"folder:{run.parent / 'photos'}"
    table = pd.read_parquet(embedded(run, data, tmp_path / "f.parquet"))
    assert list(table.columns) == ["name", "label", "split", "features"]
    array = np.load(embedded(run, data, tmp_path / "f.npy"))
    assert array.dtype == np.float32
    assert json.loads((tmp_path / "f.json").read_text())["name"] == NAMES
    tensor = load_file(embedded(run, data, tmp_path / "f.safetensors"))["features"]
    assert np.array_equal(np.stack(table["features"].tolist()), array)
    assert np.array_equal(tensor, array)
    assert pq.read_schema(tmp_path / "f.parquet").field("features").type.list_size == 128


def test_they_are_the_features_of_the_run_s_evaluation(run: Path, tmp_path: Path) -> None:
    data = f"folder:{run.parent / 'photos'}"
    encoder = rg.load_encoder(run)
    images, _ = load_data(data, size=32)
    expected = extract_features(encoder.encoder, images, size=32, mean=encoder.mean, std=encoder.std).features
    found = read_features(embedded(run, data, tmp_path / "f.parquet")).features
    assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_those_of_the_encoder(run: Path, tmp_path: Path) -> None:
    for suffix in FORMATS:
        out = embedded(run, f"folder:{run.parent / 'photos'}", tmp_path / f"t{suffix}", tokens=True, batch_size=32)
        found = read_features(out).features
        assert found.shape == (len(NAMES), 16, 128)
        expected = rg.load_encoder(run, tokens=True)([run.parent / "photos" / name for name in NAMES[:4]])
        assert_close(torch.tensor(found[:4]), expected, rtol=1e-4, atol=1e-5)


def test_splits_follow_each_other_and_one_can_be_chosen(digits: Path, tmp_path: Path) -> None:
    both = read_features(embedded(digits, "digits", tmp_path / "all.npy"))
    assert both.record.rows == {"train": 1442, "test": 355}
    assert both.listing.splits == ["train"] * 1442 + ["test"] * 355
    test = read_features(embedded(digits, "digits", tmp_path / "new" / "test.npy", split="test"))
    assert_close(torch.tensor(test.features), torch.tensor(both.features[1442:]), rtol=1e-4, atol=1e-5)
    assert test.listing.labels == (both.listing.labels or [])[1442:]
    assert set(test.listing.splits) == {"test"}
    with pytest.raises(UserError, match="has no test split: choose --split train"):
        embed_images(digits, f"folder:{_greys(tmp_path)}", tmp_path / "f.npy", split="test")


def _greys(home: Path) -> Path:
    for k in range(3):
        (home / "greys").mkdir(exist_ok=True)
        photo(40, 40, k).convert("L").save(home / "greys" / f"{k}.png")
    return home / "greys"


def test_grey_images_become_rgb_and_others_are_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    greys = _greys(tmp_path)
    found = read_features(embedded(run, f"folder:{greys}", tmp_path / "f.npy")).features
    assert_close(torch.tensor(found), rg.load_encoder(run)(sorted(greys.iterdir())), rtol=1e-4, atol=1e-5)
    np.save(greys / "5.npy", np.zeros((40, 40, 5), np.uint8))
    with pytest.raises(UserError, match=r"5\.npy cannot be read: 5 channels cannot be converted to 3") as raised:
        embed_images(run, f"folder:{greys}", tmp_path / "g.npy")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("g.npy*"))


def test_broken_images_stop_it_or_are_skipped_and_listed(run: Path, tmp_path: Path) -> None:
    greys = _greys(tmp_path)
    content = (greys / "1.png").read_bytes()
    (greys / "1.png").write_bytes(content[: len(content) // 2])
    work = embed_images(run, f"folder:{greys}", tmp_path / "f.parquet")
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        work.run()
    out = embedded(run, f"folder:{greys}", tmp_path / "g.parquet", on_bad_image="skip")
    assert read_features(out).listing.names == ["0.png", "2.png"]
    assert str(greys / "1.png") in (tmp_path / "g.parquet.skipped.txt").read_text()
    (greys / "1.png").write_bytes(content)
    embedded(run, f"folder:{greys}", out, overwrite=True)
    assert not (tmp_path / "g.parquet.skipped.txt").exists()


def test_nothing_is_held_longer_than_its_batch(run: Path, tmp_path: Path) -> None:
    work = embed_images(run, f"folder:{run.parent / 'photos'}", tmp_path / "f.parquet", batch_size=4, workers=0)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    work.module.register_forward_hook(lambda module, given, out: made.append(weakref.ref(out)))
    work.run(lambda done: alive.append(sum(ref() is not None for ref in made)))
    assert len(made) == len(NAMES) // 4
    assert max(alive) <= 2
    assert not any(part.in_memory for part in work.parts)


def test_timm_s_weights_see_images_as_timm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    save_file({name: each.numpy() for name, each in network.state_dict().items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors"))
    (tmp_path / "photos").mkdir()
    for k in range(3):
        photo(300 + 20 * k, 260, k).save(tmp_path / "photos" / f"{k}.png")
    out = embedded("timm:test_resnet", f"folder:{tmp_path / 'photos'}", tmp_path / "f.parquet")
    found = read_features(out)
    assert found.record.encoder == "timm:test_resnet"
    described = network.pretrained_cfg
    assert (found.record.size, found.record.centre) == (described["input_size"][1], described["crop_pct"])
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    headless = network.eval()
    headless.reset_classifier(0)
    pictures = [transform(Image.open(tmp_path / "photos" / f"{k}.png")) for k in range(3)]
    with torch.no_grad():
        expected = headless(torch.stack(pictures))
    assert torch.nn.functional.cosine_similarity(torch.tensor(found.features), expected).min() > 0.999
    with pytest.raises(UserError, match="timm:test_resnet has one set of weights"):
        embed_images("timm:test_resnet", "digits", tmp_path / "g.npy", branch="target")
    with pytest.raises(UserError, match="timm has no weights of resnet_tin: choose a model"):
        embed_images("timm:resnet_tin", "digits", tmp_path / "g.npy")


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet", "mobilenetv3_small_050", "test_vit"])
def test_folding_batch_norms_keeps_the_features(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(backbone, size=64).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for name, each in module.state_dict().items():
                if name in ("running_mean", "bias"):
                    each.normal_()
                elif each.is_floating_point():
                    each.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = encoder(images)
        folded = fold_batch_norms(encoder.network)
        assert_close(encoder(images), before, rtol=1e-3, atol=1e-4)
    assert (folded > 0) == ("resnet" in backbone)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "digits"], "nowhere is not a run folder"),
        (["RUN", "folder:nowhere"], "there is no folder nowhere"),
        (["RUN", "digits", "--out", "f.txt"], "unknown suffix of a features file '.txt': expected one of .npy"),
        (["RUN", "digits", "--out", "folder.npy"], "folder.npy is a directory"),
        (["RUN", "digits", "--out", "there.npy"], "there.npy exists: choose another --out, or replace it"),
        (["RUN", "digits", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["RUN", "digits", "--workers", "-1"], "--workers must be from 0 to"),
        (["RUN", "digits", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["RUN", "digits", "--checkpoint", "best"], "unknown checkpoint 'best'"),
        (["RUN", "digits", "--split", "val"], "--split"),
    ],
)
def test_what_cannot_be_embedded_is_said_in_one_line(
    arguments: list[str],
    says: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "there.npy").touch()
    assert main(["embed", *(str(digits) if word == "RUN" else word for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_the_command_prints_plain_lines_that_fit(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    assert main(["embed", str(digits), "digits", "--out", str(tmp_path / "f.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("/1,797 images" in line and "images/s" in line for line in lines)
    assert lines[-1].startswith("features 1797 x 128, written in")
    assert max(map(len, lines[:-1])) <= 80


@pytest.mark.parametrize("width", [30, 80])
def test_the_bar_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", width)
    progress = EmbeddingProgress("features.parquet", 20_000)
    for done in (0, 4_000):
        progress(done)
    with console.capture() as captured:
        console.print(progress.view())
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "images/s" in lines[1]
    assert "left" in lines[0]
