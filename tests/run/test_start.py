"""A run that begins with pretrained weights: its frozen start, its presets, and its folder."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.testing import assert_close

import rankgap as rg
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.errors import InterruptedRunError
from rankgap.evaluate import evaluate
from rankgap.model.backbones import build_encoder
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.plan import Plan, resolve
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from rankgap.show.terminal import console
from tests.small_run import four_steps

FLAGS = ["train", "--data", "digits", "--limit", "128", "--batch-size", "64", "--epochs", "2", "--loggers", "none"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose encoder others continue; its teacher differs from it."""
    out = tmp_path_factory.mktemp("start") / "first"
    train(four_steps(out, method="byol"))
    return out


def continued(out: Path, init: str, **more: Any) -> TrainConfig:
    return four_steps(out, init=init, **more)


def test_the_frozen_start_is_scored_as_the_weights_were(first: Path, tmp_path: Path) -> None:
    results = train(continued(tmp_path / "a", f"run:{first}"))
    before = RunFolder(first).results()
    start = results["start"]
    for name in ("knn", "linear", "erank_features", "rankme_features", "sets", "protocol"):
        assert start[name] == before[name], name
    loaded = rg.load_encoder(first)
    images, tests = load_data("digits", limit=128)
    assert tests is not None
    found = evaluate(loaded.encoder, images, {"test": tests}, size=loaded.size)
    assert (found["knn"], found["erank_features"]) == (start["knn"], pytest.approx(start["erank_features"]))
    assert RunFolder(tmp_path / "a").results()["start"] == start
    assert results["knn"] is not None
    notes = RunFolder(tmp_path / "a").saved().notes
    assert notes[0].endswith(f"tensors of the encoder from the online encoder of {first}")


@pytest.mark.parametrize("branch", ["online", "target"])
def test_a_run_s_encoder_or_its_teacher_is_continued(branch: Any, first: Path, tmp_path: Path) -> None:
    init = f"{'run' if branch == 'online' else 'teacher'}:{first}"
    plan = resolve(continued(tmp_path / "a", init))
    expected = rg.load_encoder(first, branch=branch).encoder.state_dict()
    assert plan.model.teacher is not None or plan.method.body == "simsiam"
    assert_close(plan.model.encoder("online").state_dict(), expected, rtol=0, atol=0)
    other = rg.load_encoder(first, branch="target" if branch == "online" else "online").encoder.state_dict()
    assert any(not torch.equal(other[name], each) for name, each in expected.items())


def test_both_branches_begin_with_the_weights(first: Path, tmp_path: Path) -> None:
    model = resolve(continued(tmp_path / "a", f"run:{first}", method="dino")).model
    assert model.teacher is not None
    assert_close(model.encoder("online").state_dict(), model.encoder("target").state_dict(), rtol=0, atol=0)


def test_a_run_s_backbone_and_normalisation_are_taken_over(first: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(continued(tmp_path / "a", f"run:{first}"), backbone=None, limit=100)
    plan = resolve(config)
    saved = RunFolder(first).saved().model
    assert (plan.backbone, plan.train.mean, plan.train.std) == ("resnet_tiny", saved.mean, saved.std)
    assert resolve(dataclasses.replace(config, init=None)).train.mean != saved.mean
    assert plan.saved().model.mean == saved.mean
    assert all(images.mean == saved.mean for images in plan.tests.values())


def test_a_continued_run_needs_its_weights_no_more(tmp_path: Path) -> None:
    """A pretrained ResNet's 7x7 stem is kept below 64 px, and the run is rebuilt with it from its folder alone."""
    file, out = tmp_path / "w.pth", tmp_path / "a"
    torch.save(build_encoder("resnet18", channels=3, size=96).network.state_dict(), file)
    config = continued(out, str(file), protocol=("knn",), size=16)
    results = train(dataclasses.replace(config, backbone="resnet18", epochs=1))
    file.unlink()
    folder = RunFolder(out)
    assert folder.saved().model.stem == "own"
    assert rg.load_encoder(out)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 512)
    assert main(["evaluate", str(out), "--protocol", "knn"]) == 0
    assert folder.results()["knn"] == pytest.approx(results["knn"])
    assert folder.results()["start"] == results["start"]


class Interrupt(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if getattr(pl_module, "step", 0) == 3:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_keeps_its_start_and_does_not_score_it_again(tmp_path: Path) -> None:
    file, whole, cut = tmp_path / "w.pth", tmp_path / "whole", tmp_path / "cut"
    torch.save(build_encoder("resnet_tiny", channels=1, size=8).network.state_dict(), file)
    expected = train(continued(whole, str(file)))
    with pytest.raises(InterruptedRunError):
        train(continued(cut, str(file)), callbacks=[Interrupt()])
    kept = RunFolder(cut).results()
    assert kept == {"start": expected["start"]}
    marked = kept["start"] | {"notes": ["from before the interruption"]}
    RunFolder(cut).write_results({"start": marked})
    file.unlink()
    found = train(resumed(cut, {}))
    assert found["start"] == marked
    assert found["knn"] == expected["knn"]
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert train(resumed(cut, {"epochs": 3}))["start"] == marked


def test_without_labels_or_protocol_the_ranks_of_the_start_are_kept(first: Path, tmp_path: Path) -> None:
    start = train(continued(tmp_path / "a", f"run:{first}", protocol=()))["start"]
    assert start["erank_features"] == pytest.approx(RunFolder(first).results()["erank_features"])
    assert "knn" not in start
    images = torch.randint(0, 256, (64, 8, 8, 1), dtype=torch.uint8)
    run = rg.train(images, init=f"run:{first}", epochs=1, batch_size=32, loggers=(), out=tmp_path / "b")
    assert run.results["start"]["rankme_features"] > 1
    assert "the training images have no labels" in run.results["start"]["notes"][0]


def test_a_run_from_random_weights_has_no_start(first: Path) -> None:
    assert "start" not in RunFolder(first).results()


def planned(first: Path, tmp_path: Path, **more: Any) -> Plan:
    return resolve(continued(tmp_path / "a", f"run:{first}", **more))


def test_a_start_is_continued_gently(first: Path, tmp_path: Path) -> None:
    plan = planned(first, tmp_path, method="byol")
    fresh = resolve(four_steps(tmp_path / "a", method="byol"))
    options = plan.recipe.optimizer
    assert (options.encoder_lr, options.freeze_encoder_epochs, options.layer_decay) == (0.1, 0.2, 1.0)
    assert options.lr == fresh.recipe.optimizer.lr
    for words in (
        "the encoder's weights are frozen for 0.2 of 2 epochs",
        "learns at 0.1 of the heads' learning rate",
    ):
        assert any(words in note for note in plan.notes)
    assert plan.recipe.teacher == fresh.recipe.teacher  # in four steps, the heads' teacher must not be slower
    assert planned(first, tmp_path).recipe.teacher == resolve(four_steps(tmp_path / "a")).recipe.teacher


def test_a_long_run_s_heads_warm_up_for_ten_epochs_and_its_teacher_is_slower(first: Path, tmp_path: Path) -> None:
    plans = [
        resolve(dataclasses.replace(four_steps(tmp_path / "a", method="byol", init=init), epochs=300))
        for init in (f"run:{first}", None)
    ]
    slow, fresh = (1 - plan.recipe.teacher.momentum for plan in plans)
    assert plans[0].recipe.optimizer.freeze_encoder_epochs == 10
    assert slow == pytest.approx(fresh / 2)
    assert any("the teacher starts good, so it may move more slowly" in note for note in plans[0].notes)
    assert not plans[0].warnings


def test_a_transformer_s_layers_learn_the_more_slowly_the_lower_they_are(tmp_path: Path) -> None:
    torch.save(build_encoder("test_vit", channels=1, size=32).network.state_dict(), tmp_path / "w.pth")
    config = dataclasses.replace(
        continued(tmp_path / "a", str(tmp_path / "w.pth"), method="dino"), backbone="test_vit", size=32
    )
    plan = resolve(config)
    assert plan.recipe.optimizer.layer_decay == 0.75
    assert any("each layer of the encoder learns at 0.75" in note for note in plan.notes)
    asked = {"optimizer.layer_decay": 1.0, "optimizer.encoder_lr": 0.5, "teacher.momentum": 0.9}
    own = resolve(dataclasses.replace(config, settings=asked)).recipe
    assert (own.optimizer.layer_decay, own.optimizer.encoder_lr, own.teacher.momentum) == (1.0, 0.5, 0.9)


def test_a_recipe_that_is_named_is_taken_as_it_is(first: Path, tmp_path: Path) -> None:
    plan = planned(first, tmp_path, recipe="cifar", method="byol")
    assert (plan.recipe.optimizer.encoder_lr, plan.recipe.optimizer.freeze_encoder_epochs) == (1.0, 0.0)
    assert not any("frozen for" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--init", "missing.pt"], "there is no file 'missing.pt'"),
        (["--init", "empty.pt"], "empty.pt has no weights: expected a state_dict"),
        (["--init", "text.pt"], "text.pt is not a file of weights"),
        (
            ["--init", "resnet18.pt", "--backbone", "resnet_tiny"],
            "it is another architecture; choose its --backbone",
        ),
        (["--init", "colour.pt", "--backbone", "resnet_tiny"], "takes 2-channel images, these are 1-channel"),
        (["--init", "part.pt"], "start these at random with --init-partial"),
        (["--init-partial"], "--init-partial says what to do where --init has no weights"),
        (["--init", "teacher:simsiam"], "simsiam has no EMA teacher; write run:"),
        (["--init", "simsiam"], "--init simsiam is a run folder: write run:simsiam"),
        (["--init", "timm"], "timm has no weights of resnet_tiny: choose a model"),
        (["--backbone", "vit_tiny_patch16_224.augreg_in21k"], "add --init timm to start from them"),
        (["--init", "run:nowhere"], "nowhere is not a run folder"),
    ],
)
def test_bad_starts_are_said_in_one_line_before_anything_is_written(
    flags: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = build_encoder("resnet_tiny", channels=1, size=8).network.state_dict()
    torch.save({}, "empty.pt")
    Path("text.pt").write_text("no weights")
    torch.save(build_encoder("resnet18", channels=1, size=8).network.state_dict(), "resnet18.pt")
    torch.save(build_encoder("resnet_tiny", channels=2, size=8).network.state_dict(), "colour.pt")
    torch.save({name: each for name, each in tiny.items() if name != "bn1.weight"}, "part.pt")
    if "simsiam" in flags[-1]:
        train(four_steps(Path("simsiam"), protocol=()))
    capsys.readouterr()
    assert main([*FLAGS, *flags, "--accelerator", "cpu", "--out", "out"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert says in error
    assert not Path("out").exists()


def test_a_module_of_one_s_own_starts_from_its_own_weights(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
    with pytest.raises(
        ValueError, match="a model of your own starts from the weights that it has; leave init out"
    ):
        rg.train(images, model=module, init="timm", batch_size=32, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_folder_s_name_says_the_start() -> None:
    names = {
        init: TrainConfig(method="byol", data="digits", init=init).path.name
        for init in ("timm", "run:runs/first", "hf:me/mine", "weights/dino.pth")
    }
    assert names == {
        "timm": "byol-digits-from-timm-seed0",
        "run:runs/first": "byol-digits-from-first-seed0",
        "hf:me/mine": "byol-digits-from-mine-seed0",
        "weights/dino.pth": "byol-digits-from-dino-seed0",
    }


def test_the_start_s_scores_are_said_before_training_and_after_it(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 300)
    assert main([*FLAGS, "--init", f"run:{first}", "--out", str(tmp_path / "a")]) == 0
    start = RunFolder(tmp_path / "a").results()["start"]
    lines = capsys.readouterr().out.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("  frozen start: "))
    before = f"kNN {100 * start['knn']:.1f}, linear {100 * start['linear']:.1f}, erank features "
    assert before in lines[said]
    assert said < next(i for i, line in enumerate(lines) if line.startswith("epoch 1/2"))
    assert any(f"since its frozen start: kNN {100 * start['knn']:.1f} -> " in line for line in lines[said:])
