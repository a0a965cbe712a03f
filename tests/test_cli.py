"""The commands, end to end, on digits and on folders made here."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch.testing import assert_close

import rankgap
from rankgap.cli import main
from rankgap.commands import COMMANDS
from rankgap.demo import DESIGNS, run_demo, story
from rankgap.errors import UserError
from rankgap.evaluate import extract_features
from rankgap.evaluate.scores import SCORES, Rated, RunScores, Score, rate
from rankgap.model.methods import METHODS, choices
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore
from rankgap.run.saved import FORMAT
from rankgap.show.live import live_view
from rankgap.spectra.effective_rank import rankme
from rankgap.watch.verdict import Use
from tests.matrices import gaussian

SHORT = ["--epochs", "2", "--batch-size", "64", "--limit", "256", "--rank-every", "2", "--protocol", "knn"]


def train(out: Path, *flags: str) -> int:
    return main(["train", *SHORT, "--out", str(out), *flags])


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def picture(path: Path, size: tuple[int, int] = (12, 12), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        picture(tmp_path / "mine" / f"day{i % 3}" / "camera" / f"{i}.png", seed=i)
    return tmp_path / "mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "simsiam"
    assert train(out, "--method", "simsiam", "--protocol", "knn,linear") == 0
    return out


def test_train_fills_the_run_folder(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 6, 7]
    first = {k: float(v) for k, v in rows[0].items()}
    assert {"epoch", "loss", "erank_online", "erank_target", "rank_difference"} <= first.keys()
    assert first["rank_difference"] == pytest.approx(first["erank_target"] - first["erank_online"], rel=1e-5)
    found = results(run)
    assert 0 < found["knn"] <= 1
    assert 0 < found["linear"] <= 1
    assert found["images_per_second"] > 0
    assert found["erank_online"] == pytest.approx(float(rows[-1]["erank_online"]))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["run"]["method"] == "simsiam"
    assert config["recipe"]["projector"]["widths"] == [256, 256, 256]
    assert config["format"] == FORMAT
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["step"] == 8


def test_spectra_along_training_are_kept(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    snapshots = folder.spectra()
    assert [s.step for s in snapshots] == folder.metrics()["step"]
    for snapshot in snapshots:
        assert snapshot.rows == len(snapshot.spectrum_target) == 64  # of one view
        assert len(snapshot.eigenspace_alignment) == len(snapshot.measured_filter) <= 64
        assert snapshot.spectrum_target[0] == snapshot.spectrum_target.max() > 0
        assert ((snapshot.eigenspace_alignment >= 0) & (snapshot.eigenspace_alignment <= 1)).all()
    metrics = folder.metrics()  # of the same rows
    assert metrics["erank_online"] == pytest.approx([float(s.erank_online) for s in snapshots], rel=1e-4)
    assert metrics["erank_target"] == pytest.approx([float(s.erank_target) for s in snapshots], rel=1e-4)
    half = RunFolder(tmp_path)
    half.spectra_file.write_text(folder.spectra_file.read_text() + '{"step": 8, "epo')
    kept = [s.plain() for s in snapshots]
    assert [s.plain() for s in half.spectra()] == kept
    half.rewind(half.history(4))
    assert [s.plain() for s in half.spectra()] == kept[:2]
    half.spectra_file.write_text("no spectra\n")
    with pytest.raises(UserError, match="not a list of spectra"):
        half.spectra()


def test_the_resolved_configuration_trains_the_same_run_again(run: Path, tmp_path: Path) -> None:
    again = yaml.safe_load((run / "config.yaml").read_text())["run"] | {"out": str(tmp_path / "again")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(again))
    assert main(["train", "--config", str(tmp_path / "c.yaml")]) == 0
    assert (tmp_path / "again" / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_evaluate_repeats_the_number_of_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(run)
    assert main(["evaluate", str(run), "--protocol", "knn"]) == 0
    assert results(run)["knn"] == before["knn"]
    assert "kNN" in capsys.readouterr().out


def test_the_loaded_encoder_gives_the_features_that_were_scored(run: Path) -> None:
    plan = restore(run)
    expected = extract_features(plan.model.encoder(), plan.train, size=plan.size).features[:10]
    encoder = rankgap.load_encoder(run)
    with torch.no_grad():
        torch.testing.assert_close(encoder(plan.train.batch(range(10)).images), expected)
    assert not encoder.training


def test_the_target_s_encoder_is_evaluated_beside_the_online_one(run: Path) -> None:
    before = results(run)
    assert main(["evaluate", str(run), "--protocol", "knn", "--branch", "target", "--eval", "more=digits"]) == 0
    after = results(run)
    assert after["target_branch"]["branch"] == "target"
    assert after["target_branch"]["sets"].keys() == {"test", "more"}
    assert {k: v for k, v in after.items() if k != "target_branch"} == before


def test_compare_shows_every_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "twin")
    assert main(["compare", str(run), str(tmp_path / "twin")]) == 0
    out = capsys.readouterr().out
    assert "(simsiam)" in out
    assert "(twin)" in out
    assert f"{100 * results(run)['knn']:.1f}" in out
    shutil.copytree(run, tmp_path / "more")
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path)]) == 0  # a folder of runs
    out = capsys.readouterr().out
    assert "(more)" in out
    assert "(twin)" in out
    assert "contains no run" in " ".join(out.split())


def test_a_collapse_is_named_while_it_trains_and_in_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--epochs", "15", "--rank-every", "1", "--protocol", "none", "--lr", "1"]
    assert train(out, "--method", "siamese", *flags) == 0
    *_, alarm = results(out)["alarms"]  # dying dimensions first, and then
    assert alarm["kind"] == "complete"
    assert alarm["step"] < 60
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"{alarm['kind']} at step {alarm['step']}") == 2
    assert train(tmp_path / "healthy", "--target", "power:-0.5", *flags) == 0
    assert results(tmp_path / "healthy")["alarms"] == []
    verdicts = [results(path)["verdict"]["kind"] for path in (out, tmp_path / "healthy")]
    assert verdicts == ["collapsed", "healthy"]


def test_checkpoints_are_kept_as_asked_and_a_resumed_run_keeps_the_same(tmp_path: Path) -> None:
    flags = ["--epochs", "4", "--keep-every", "2", "--save-best", "rank", "--protocol", "none"]
    assert train(tmp_path / "a", *flags) == 0
    folder = RunFolder(tmp_path / "a")
    names = [path.stem for path in folder.checkpoints()]
    assert names == ["best", "epoch-0002", "epoch-0004", "last"]
    steps = {path.stem: folder.load_checkpoint(path).step for path in folder.checkpoints()}
    assert (steps["epoch-0002"], steps["epoch-0004"], steps["last"]) == (8, 16, 16)
    ranks = {}
    for path in folder.checkpoints():
        plan = restore(folder.path, checkpoint=path)
        sample = plan.train.sample(2048)
        ranks[path.stem] = float(rankme(extract_features(plan.model.encoder(), sample, size=plan.size).features))
        images = sample.batch(range(8)).images
        with torch.no_grad():
            kept = rankgap.load_encoder(folder.path, checkpoint=path.stem)(images)
            assert_close(kept, extract_features(plan.model.encoder(), sample, size=plan.size).features[:8])
    assert ranks["best"] == max(ranks.values())
    assert folder.load_checkpoint().best == pytest.approx(ranks["best"], rel=1e-6)
    with pytest.raises(UserError, match=r"unknown checkpoint 'epoch-0003': did you mean 'epoch-000[24]'"):
        rankgap.load_encoder(folder.path, checkpoint="epoch-0003")


def test_score_rates_every_checkpoint_and_says_what_each_score_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "a", "--keep-every", "1", "--protocol", "none") == 0
    assert main(["score", str(tmp_path / "a"), "--images", "200", "--repeats", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "RankMe: prefers epoch-000" in said
    assert "…" not in said
    assert "one method, encoder and data set" in said
    assert "LiDAR: prefers" in said
    assert "uniformity:" not in said
    found = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert list(found["checkpoints"]) == ["epoch-0001", "epoch-0002", "last"]
    first, last = found["checkpoints"]["epoch-0001"], found["checkpoints"]["last"]
    assert last == found["checkpoints"]["epoch-0002"]
    assert last.keys() - {"step"} == {name for name, score in SCORES.items() if score.takes != "tokens"}
    assert "the encoder's feature map has one place for a view of 8 px" in said
    for name in last.keys() - {"step"}:
        assert last[name]["half_width"] > 0
        assert last[name]["value"] != first[name]["value"]
    plan = restore(tmp_path / "a")
    features = extract_features(plan.model.encoder(), plan.train.sample(200), size=plan.size).features
    assert last["RankMe"]["value"] == pytest.approx(float(rankme(features)), rel=1e-6)
    assert main(["score", str(tmp_path / "a"), "--images", "2"]) == 2


def test_a_score_s_interval_is_that_of_a_mean() -> None:
    z = gaussian(4000, 1)
    mean = Score(lambda z: z.mean(), "features", "highest", "")
    assert rate(mean, z, repeats=400).half == pytest.approx(1.96 / 4000**0.5, rel=0.1)


def test_a_score_that_is_not_defined_prefers_nothing() -> None:
    dead = {
        name: rate(score, torch.ones(40, 3) if score.takes == "features" else torch.ones(40, 4, 3), repeats=2)
        for name, score in SCORES.items()
    }
    found = RunScores(title="x", images=40, steps={"last": 1}, rated={"last": dead})
    for name in ("NESum", "log LID", "DSE", "position share"):
        assert math.isnan(dead[name].value)
        assert found.best(name) == ("", [])
    assert found.best("RankMe") == ("last", [])


def test_a_share_that_describes_has_no_best_checkpoint() -> None:
    rated = {"epoch-0001": {"position share": Rated(0.1, 0.01)}, "last": {"position share": Rated(0.9, 0.01)}}
    assert RunScores(title="x", images=40, steps={"last": 2, "epoch-0001": 1}, rated=rated).best(
        "position share"
    ) == ("", [])


def test_readings_go_to_the_loggers_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "a", "--loggers", "csv", "--protocol", "none") == 0
    with (tmp_path / "a" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["erank_target"]) for row in rows] == pytest.approx(
        RunFolder(tmp_path / "a").metrics()["erank_target"]
    )
    assert not (tmp_path / "a" / "tensorboard").exists()
    assert train(tmp_path / "b", "--loggers", "tensorbord") == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    for name in ("wandb", "mlflow"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert train(tmp_path / "b", "--loggers", name) == 2
        assert f"pip install 'rankgap[{name}]'" in capsys.readouterr().err


def test_watch_shows_a_run_and_ends_with_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    found = results(run)
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:6]] == [["step", str(step)] for step in (1, 3, 5, 7, 8)]
    assert f"erank {found['erank_online']:.1f} -> {found['erank_target']:.1f}" in lines[5]
    assert lines[-1] == "finished"
    assert "not a run folder" in fails(capsys, "watch", str(tmp_path))


def test_watch_shows_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    console = Console(width=80, record=True)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    console.print(live_view(RunFolder(tmp_path), None, width=80))
    assert "no reading yet" in console.export_text()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.csv").write_text("".join(lines[:3]) + lines[3][:9])  # the last row is half written
    console.print(live_view(RunFolder(tmp_path), 32.0, width=80))
    text = console.export_text()
    assert "3 of 8 steps, 32 images/s" in text
    assert "about 10 s left" in text  # 5 steps of 64 images
    curve = next(line for line in text.splitlines() if line.startswith("erank target"))
    assert 8 < len(curve.rstrip()) <= 80


def test_methods_lists_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*METHODS, *choices("online")))


def test_train_help_gives_each_flag_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--rank-every" in out
    assert "steps between readings of the ranks" in out
    assert "default: 10" in out


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("byol", []),
        ("swav", ["--settings", "target.sinkhorn.queue=128", "target.sinkhorn.queue_epochs=0"]),
        ("dino", []),
        ("symsimsiam", []),
        ("directcopy", []),
        ("byol", ["--online=learned"]),
        ("simsiam", ["--target=power:-0.5", "--settings", "target.filter.estimator=ema", "target.filter.every=4"]),
    ],
)
def test_every_kind_of_state_survives_an_interruption(method: str, flags: list[str], tmp_path: Path) -> None:
    """EMA, queue, centre, correlation, optimiser, random state: an interrupted run ends with the same numbers."""
    flags = ["--method", method, "--epochs", "3", *flags]
    assert train(tmp_path / "whole", *flags) == 0
    from lightning.pytorch import Callback

    from rankgap.errors import InterruptedRunError
    from rankgap.run.trainer import train as run_config

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.step == 6:
                signal.raise_signal(signal.SIGINT)

    config = dataclasses.replace(RunFolder(tmp_path / "whole").saved().run, out=str(tmp_path / "cut"))
    with pytest.raises(InterruptedRunError, match="step 6 of 12"):
        run_config(config, callbacks=[Interrupt()])
    assert main(["train", "--out", str(tmp_path / "cut"), "--resume"]) == 0
    for name in ("metrics.csv", "spectra.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert results(tmp_path / "cut")["knn"] == results(tmp_path / "whole")["knn"]
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["model"]
        for name in ("whole", "cut")
    )
    assert_close(cut, whole, rtol=0, atol=0)


def test_checkpointed_gradients_change_no_number_of_a_run(tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--rank-every", "1", "--precision", "32-true"]
    assert train(tmp_path / "plain", *flags) == 0
    assert train(tmp_path / "again", *flags, "--grad-checkpointing") == 0
    for name in ("metrics.csv", "spectra.jsonl"):
        assert (tmp_path / "plain" / name).read_text() == (tmp_path / "again" / name).read_text()
    plain, again = (RunFolder(tmp_path / name).load_checkpoint().model for name in ("plain", "again"))
    assert_close(again, plain, rtol=0, atol=0)


def test_a_compiled_encoder_trains_like_an_uncompiled_one(tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--rank-every", "1", "--precision", "32-true"]
    assert train(tmp_path / "plain", *flags) == 0
    assert train(tmp_path / "compiled", *flags, "--compile") == 0
    plain, compiled = (RunFolder(tmp_path / name).metrics() for name in ("plain", "compiled"))
    assert compiled["loss"] == pytest.approx(plain["loss"], abs=1e-3)
    assert compiled["erank_online"] == pytest.approx(plain["erank_online"], rel=1e-2)
    model = restore(tmp_path / "compiled").model  # the checkpoint knows nothing of it
    assert model.encoder()(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_an_encoder_that_cannot_be_compiled_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    assert train(tmp_path / "run", "--compile") == 2
    assert "torch.compile cannot compile the encoder resnet_tiny" in capsys.readouterr().err


def test_a_resumed_run_keeps_the_recipe_it_was_started_with(run: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["recipe"]["optimizer"]["lr"] = 0.0123  # as the presets of another version might have chosen
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "config.yaml").write_text(yaml.safe_dump(saved))
    assert restore(tmp_path / "copy").recipe.optimizer.lr == 0.0123


def test_flags_given_on_resumption_must_agree_even_if_they_are_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "a", "--method", "byol", "--seed", "3", "--protocol", "none") == 0
    resume = ["train", "--out", str(tmp_path / "a"), "--resume"]
    assert "was started with --seed 3, not 0" in fails(capsys, *resume, "--seed", "0")
    assert main([*resume, "--method", "byol", "--protocol", "knn"]) == 0
    assert results(tmp_path / "a")["knn"] > 0


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (("format",), None, "written by rankgap 0.1"),
        (("format",), 99, "another version of rankgap (format 99)"),
        (("run", "epochs"), 0.9, "config.yaml.run.epochs takes a whole number, got 0.9"),
        (("run", "epoch"), 3, "did you mean 'epochs'"),
        (("run", "data"), None, "config.yaml.run.data takes text, got None"),
        (("model", "std"), [1, "x"], "config.yaml.model.std.1 takes a number, got 'x'"),
        (("work", "images"), "many", "config.yaml.work.images takes a whole number"),
        (("recipe", "views"), [{}], "two views or more"),
        (("recipe", "online"), {"predictor": {"width": [3]}}, "did you mean 'widths'"),
        (("title",), [], "config.yaml.title takes text, got []"),
    ],
)
def test_a_saved_run_is_read_strictly(
    key: tuple[str, ...], value: object, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    place = saved
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    if key == ("format",) and value is None:
        del saved["format"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    for command in ("compare", "watch", "evaluate"):
        assert says in fails(capsys, command, str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.csv", "step,loss\n0,x\n", "metrics.csv is not a table of numbers"),
        ("metrics.csv", "step,loss\n0,1\n", "metrics.csv lacks the columns epoch, erank_online"),
        ("metrics.csv", b"\xff\xfe\x00", "metrics.csv is not UTF-8 text"),
        ("results.json", "[]", "should hold the results of a run by name, got list"),
        ("results.json", "[" * 100_000, "results.json is not JSON"),
        ("spectra.jsonl", "[" * 100_000 + "\n", "spectra.jsonl is not a list of spectra"),
        ("spectra.jsonl", "{}\n", "spectra.jsonl is not a list of spectra"),
        ("config.yaml", "a: " + "[" * 100_000, "config.yaml is not YAML"),
    ],
)
def test_a_spoilt_file_of_a_run_is_named_in_one_line(
    file: str, content: str | bytes, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in fails(capsys, "report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html"))


@pytest.mark.parametrize("out", ["design.bmp", "design", "."])
def test_a_design_s_picture_is_refused_before_any_work(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The gain is wrong too: the name of the picture is looked at first.
    assert "name" in fails(capsys, "design", "--target", "no gain", "--out", str(tmp_path / out))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF-"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_design_is_drawn_in_the_format_of_its_suffix(suffix: str, begins: bytes, tmp_path: Path) -> None:
    out = tmp_path / f"design.{suffix}"
    assert main(["design", "--target", "power:-0.5", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(begins)


def test_the_exponent_that_auto_chose_is_a_column(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "--target", "auto", "--protocol", "none") == 0
    exponents = RunFolder(tmp_path / "run").metrics()["exponent"]
    assert len(exponents) == 5
    assert all(-1 <= p < 0 for p in exponents)


def test_python_m_rankgap_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "rankgap", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert rankgap.__version__ in said


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_a_run_that_can_be_resumed(name: str, tmp_path: Path) -> None:
    out, number = tmp_path / "run", getattr(signal, name)
    command = [
        sys.executable,
        "-m",
        "rankgap",
        "train",
        "--epochs",
        "500",
        "--batch-size",
        "64",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    limit = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in errors
    assert "Traceback" not in errors
    kept = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["step"]
    assert f"interrupted at step {kept} of" in errors


CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"CIFAR-10 (JPEG) is not at {CIFAR}")
def test_real_photographs_are_read_and_learned_from(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [
        "--data",
        f"hf:{CIFAR}",
        "--limit",
        "512",
        "--batch-size",
        "128",
        "--epochs",
        "1",
        "--protocol",
        "knn",
    ]
    assert main(["train", "--method", "dino", "--out", str(out), *flags]) == 0
    found = results(out)
    assert found["sets"]["test"]["images"] == 10_000
    assert found["knn"] > 0.12  # chance is 0.1


def test_a_folder_without_labels_gets_label_free_scores_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--batch-size", "16", "--epochs", "1", "--out", str(out), "--data", f"folder:{folder}"]
    assert main(["train", *flags]) == 0
    found = results(out)
    assert found.get("knn") is None
    assert found["erank_features"] >= 1
    assert found["rankme_features"] >= 1
    assert "label" in capsys.readouterr().out


def test_another_evaluation_set_is_scored_under_its_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, "--eval", "again=digits") == 0
    found = results(out)
    assert found["sets"]["again"]["knn"] == found["knn"]


def test_inspect_counts_broken_files_and_draws_a_contact_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"not an image")
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", f"folder:{folder}", "--method", "byol", "--out", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "broken.png" in out
    assert "--on-bad-image skip" in out
    picture(folder / "grey.png", mode="L")
    assert main(["inspect", f"folder:{folder}", "--out", str(sheet)]) == 1
    assert "training would stop: mixed channel counts; pass --channels 3" in capsys.readouterr().out
    flags = ["--channels", "3", "--method", "swav", "--size", "96", "--out", str(sheet)]
    assert main(["inspect", f"folder:{folder}", *flags]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "training would stop" not in out
    assert "views 2 of 96 x 96, 6 of 41 x 41, cut out of" in out
    with Image.open(sheet) as image:
        assert min(image.size) > 200


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    error = capsys.readouterr().err
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "simsam"], "did you mean 'simsiam'"),
        (["--online", "powr:1"], "power"),
        (["--data", "cifar11"], "cifar10"),
        (["--backbone", "resnet81"], "did you mean 'resnet18'"),
        (["--recipe", "cifra"], "did you mean 'cifar'"),
        (["--data", "folder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--batch-size", "3000"], "fewer than a batch"),
        (["--protocol", "ridge"], "unknown --protocol 'ridge': expected one of knn, linear, linear_sgd, none"),
        (["--settings", "prototypes.coun=3"], "did you mean 'prototypes.count'"),
        (["--settings", "prototypes.count=0.9"], "prototypes.count takes a whole number, got 0.9"),
        (["--settings", "prototypes.count=8"], "prototypes.count: simsiam has no prototypes; leave it out"),
        (["--settings", "teacher.momentum=0.9"], "teacher.momentum: simsiam has no EMA teacher; leave it out"),
        (["--settings", "projector.widths=[0.9]"], "projector.widths.0 takes a whole number, got 0.9"),
        (["--settings", "target.sinkhorn.eps=1"], "the target branch of simsiam has no map"),
        (["--settings", "lr=1", "lr=2"], "lr is given twice"),
        (["--settings", "views.0.count=2"], "views.0.count: count is for a recipe's file"),
        (["--backbone", "resnet18", "--settings", "encoder.backbone=resnet34"], "keep --backbone alone"),
        (["--eval", "digits"], "NAME=TEXT"),
        (["--eval", "test=digits"], "choose another"),
        (["--eval", "more=cifra"], "cifar10"),
        (["--accelerator", "gpx"], "did you mean 'gpu'"),
        (["--settings", "lr"], "KEY=VALUE"),
        (["--resume", "--overwrite"], "choose one"),
        (["--resume"], "there is no such folder"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--epochs", "0"], "at least 1"),
        (["--seed", "99999999999999999999"], "--seed must be from 0 to 2^63 - 1"),
        (["--seed=-1"], "--seed must be from 0 to 2^63 - 1"),
        (["--lr=-1"], "--lr must be a finite number above 0"),
        (["--lr", ".nan"], "--lr must be a finite number above 0"),
        (["--workers=-1"], "--workers must be at least 0"),
        (["--epochs", "many"], "many"),
        (["--epoch", "3"], "unknown flag '--epoch': did you mean '--epochs'? See rankgap train --help"),
        (["--metod=byol"], "unknown flag '--metod': did you mean '--method'?"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--import", "/nowhere.py"], "--import /nowhere.py failed: there is no such file"),
    ],
)
def test_bad_flags_get_one_line(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, "train", "--out", str(tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metod: byol", "unknown key of c.yaml 'metod': did you mean 'method'? See rankgap train --help"),
        ("protocol: [ridge]", "unknown c.yaml: protocol 'ridge': expected one of knn, linear, linear_sgd, none"),
        ("protocol: 3", "c.yaml: protocol takes a list, got 3"),
        ("epochs: '3'", "c.yaml: epochs takes a whole number, got '3'"),
        ("- a", "--config c.yaml: expected keys and values, got list"),
    ],
)
def test_a_bad_configuration_file_is_named_once(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    said = fails(capsys, "train", "--config", "c.yaml")
    assert says in said
    assert said.count("c.yaml") == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("none", ()), ("knn,linear", ("knn", "linear")), ("[knn, none]", ("knn",))]
)
def test_a_configuration_file_takes_lists_as_flags_do(
    text: str, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setitem(rankgap.commands.COMMANDS, "train", lambda **given: seen.update(given))
    (tmp_path / "c.yaml").write_text(f"protocol: {text}\n")
    assert main(["train", "--config", str(tmp_path / "c.yaml"), "--loggers", "csv", "--loggers", "mlflow"]) == 0
    assert seen == {"protocol": expected, "loggers": ("csv", "mlflow")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["watch", "runs/a", "--evry", "2"], "unknown flag '--evry': did you mean '--every'?"),
        (["design", "--onlin", "log"], "unknown flag '--onlin': did you mean '--online'?"),
        (["--verson"], "unknown flag '--verson': did you mean '--version'?"),
    ],
)
def test_an_unknown_command_or_flag_gets_the_nearest_name(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, *arguments)


def test_bad_images_are_named_by_their_path(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = f"folder:{folder}", str(tmp_path / "run")
    (folder / "day0" / "torn.png").write_bytes((folder / "day0" / "camera" / "0.png").read_bytes()[:60])
    assert "torn.png" in fails(capsys, "train", "--data", data, "--out", out)
    (folder / "day0" / "torn.png").unlink()
    picture(folder / "grey.png", mode="L")
    assert "grey.png" in fails(capsys, "train", "--data", data, "--out", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in fails(capsys, "train", "--data", f"folder:{empty}", "--out", out)


def test_a_run_is_never_overwritten_unasked(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = (run / "metrics.csv").read_bytes()
    assert "--overwrite" in fails(capsys, "train", "--out", str(run))
    assert (run / "metrics.csv").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "no run" in fails(capsys, "train", "--out", str(tmp_path), "--overwrite")
    assert (tmp_path / "thesis.txt").exists()


def test_a_missing_or_foreign_checkpoint_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "not a run folder" in fails(capsys, "evaluate", str(tmp_path))
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "no checkpoint" in fails(capsys, "evaluate", str(other))
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state["model"].pop(next(iter(state["model"])))
    torch.save(state, other / "checkpoints" / "last.ckpt")
    assert "another model" in fails(capsys, "evaluate", str(other))
    (other / "checkpoints" / "last.ckpt").write_text("junk\n")
    assert "is not a rankgap checkpoint" in fails(capsys, "score", str(other))
    assert "was started with --method simsiam" in fails(
        capsys, "train", "--out", str(run), "--resume", "--method", "byol"
    )


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_a_stranger_s_checkpoint_runs_no_code(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    torch.save({"step": 1, "model": Bomb(), "optimizer": {}}, tmp_path / "checkpoints" / "last.ckpt")
    assert "it holds Python objects (posix.system)" in fails(capsys, "evaluate", str(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, "--method", "byol", "--lr", "1e30", "--precision", "32-true") == 3
    error = capsys.readouterr().err
    assert "at step" in error
    assert "checkpoint" in error
    assert len(error.strip().splitlines()) == 1


def test_no_checkpoint_keeps_weights_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update of an epoch corrupts the weights, before any loss has seen them."""
    from rankgap.model.branches import DualBranch

    update = DualBranch.update_teacher

    def spoil(self: DualBranch, clock: Any) -> None:
        update(self, clock)
        if clock.step == 7:
            next(self.online.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(DualBranch, "update_teacher", spoil)
    out = tmp_path / "run"
    assert train(out) == 3
    assert "last.ckpt (step 4)" in capsys.readouterr().err
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_the_demo_trains_its_seven_designs_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankgap.show.terminal import show_demo

    found, figure = run_demo(tmp_path / "demo", seed=0, epochs=1)
    assert len(found) == len(DESIGNS) == 7
    assert all(0 < r["knn"] <= 1 and r["rank_difference"] is not None for r in found.values())
    with Image.open(figure) as image:
        assert image.width > 600
    show_demo(found, figure, story(found))
    out = " ".join(capsys.readouterr().out.split())
    assert str(figure) in out
    assert all(word in out for word in ("difference", "kNN", "linear", f"rankgap report {tmp_path / 'demo'}"))
    verdict = found["siamese"]["verdict"]["outputs"]
    assert f"its outputs use {Use(**verdict)}, and its kNN accuracy is {100 * found['siamese']['knn']:.1f}%" in out
    again, _ = run_demo(tmp_path / "demo", seed=0, epochs=1)
    assert {k: r["knn"] for k, r in again.items()} == {k: r["knn"] for k, r in found.items()}
    inside = next((tmp_path / "demo").glob("*/config.yaml")).parent
    assert main(["demo", "--out", str(inside)]) == 2
    assert f"rankgap: {inside} is the folder of a run: choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare"], "the following arguments are required: runs; see rankgap compare --help"),
        (["embed", "runs/a"], "the following arguments are required: data; see rankgap embed --help"),
        (["train", "--method"], "argument --method: expected one argument; see rankgap train --help"),
        (["compare", "nowhere"], "nowhere is not a run folder: there is no such folder"),
        (["watch", "nowhere"], "nowhere is not a run folder: there is no such folder"),
    ],
)
def test_what_is_missing_from_a_command_is_named_as_in_its_help(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"rankgap: {says}\n"


@pytest.mark.parametrize("control", [1.0, 20.0])
def test_the_demo_s_sentence_follows_the_numbers_wherever_they_fall(control: float) -> None:
    def run(rank: float, difference: float, knn: float) -> dict[str, Any]:
        verdict = {"kind": "healthy", "outputs": {"rank": rank, "of": 64}}
        return {"verdict": verdict, "rank_difference": difference, "knn": knn}

    said = story({"siamese": run(control, 0.0, 0.99), "byol": run(8.0, 2.0, 0.5), "dino": run(3.0, -1.0, 0.6)})
    assert f"its outputs use {Use(rank=control, of=64)}, and its kNN accuracy is 99.0%" in said
    assert "In 1 of the 2 others, the target ends with a higher rank" in said
    assert "use 3.0 to 8.0 dimensions, and their kNN accuracy is 50.0 to 60.0%" in said


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "train", "--method", "simsam"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "spared"),
    [
        (["--help"], {"torch", "lightning", "timm"}),
        *(([name, "--help"], {"torch", "lightning", "timm"}) for name in COMMANDS if name != "train"),
        (["compare", "no/such/run"], {"lightning", "timm", "scipy", "sklearn"}),
        (["watch", "no/such/run"], {"lightning", "timm", "scipy", "sklearn"}),
        (["methods"], {"lightning", "timm", "scipy"}),
    ],
)
def test_a_command_loads_no_library_that_it_does_not_use(command: list[str], spared: set[str]) -> None:
    code = f"from rankgap.cli import main\ntry:\n    main({command})\nexcept SystemExit:\n    pass\n"
    loaded = "import sys\nprint('loaded:', *sys.modules)"
    said = subprocess.run([sys.executable, "-c", code + loaded], check=True, capture_output=True, text=True).stdout
    assert not spared & set(said.rpartition("loaded:")[2].split())
