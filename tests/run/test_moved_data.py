"""Data that have moved or changed since a run was started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rankgap as rg
from rankgap.cli import main
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore
from tests.data.pictures import pixels, write
from tests.small_run import FLAGS

FAST = [*FLAGS, "--epochs", "2", "--protocol", "knn"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of two splits and a run on them."""
    home = tmp_path_factory.mktemp("made")
    for i in range(24):
        write(home / "d" / ("train" if i < 16 else "test") / "ab"[i % 2] / f"{i:02}.png", pixels(seed=i))
    assert main(["train", *FAST, "--data", f"folder:{home / 'd'}", "--out", str(home / "run")]) == 0
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy, whose run names data that are not there."""
    shutil.copytree(made, tmp_path / "home")
    config = tmp_path / "home" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(tmp_path / "gone")))
    return tmp_path / "home"


def knn(run: Path) -> float:
    found: float = json.loads((run / "results.json").read_text())["knn"]
    return found


@pytest.mark.parametrize("command", [["evaluate"], ["score", "--images", "8"], ["train", "--resume", "--out"]])
def test_data_that_have_moved_are_one_line_with_the_remedy(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (home / "run").rglob("*") if path.is_file()}
    assert main([*command, str(home / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no folder" in line
    assert line.endswith("pass their new location with --data NEW")
    assert before == {path: path.read_bytes() for path in before}
    assert main([*command, str(home / "run"), "--data", f"folder:{home / 'd'}"]) == 0
    said = capsys.readouterr().out
    assert "that the run was started with" not in said


def test_nothing_else_needs_the_data(home: Path) -> None:
    assert rg.load_encoder(home / "run")(torch.zeros(2, 3, 20, 20, dtype=torch.uint8)).shape[0] == 2
    for command in ("compare", "watch"):
        assert main([command, str(home / "run")]) == 0


def test_a_run_keeps_its_statistics_whatever_the_data_have_become(home: Path) -> None:
    run, place = home / "run", f"folder:{home / 'd'}"
    then = restore(run, data=place)
    knn_then = knn(run)
    assert main(["evaluate", str(run), "--data", place]) == 0
    assert knn(run) == knn_then
    for path in (home / "d" / "train").rglob("*.png"):
        write(path, np.full((40, 30, 1), 250, np.uint8))  # bright, larger and grey
    now = restore(run, data=place)
    assert (
        (now.train.mean, now.train.std)
        == (then.train.mean, then.train.std)
        == (
            RunFolder(run).saved().model.mean,
            RunFolder(run).saved().model.std,
        )
    )
    assert (now.size, now.train.channels) == (then.size, 3)


def test_evaluate_and_score_say_how_the_data_differ(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, place = home / "run", f"folder:{home / 'd'}"
    (home / "d" / "train" / "a" / "00.png").unlink()
    (home / "d" / "test" / "a" / "16.png").rename(home / "d" / "test" / "a" / "other.png")
    assert main(["evaluate", str(run), "--data", place]) == 0
    notes = json.loads((run / "results.json").read_text())["notes"]
    assert any("does not hold the training images" in note and "16 images then, 15 now" in note for note in notes)
    assert any("does not hold the test images" in note and "with other names" in note for note in notes)
    assert "16 images then, 15 now" in " ".join(capsys.readouterr().out.split())
    assert main(["score", str(run), "--images", "8", "--data", place]) == 0
    assert "16 images then, 15 now" in " ".join(capsys.readouterr().out.split())
    assert "15 now" in json.loads((run / "scores.json").read_text())["notes"][0]


def test_a_run_is_resumed_on_other_images_only_if_it_is_told_to(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, place = home / "run", f"folder:{home / 'd'}"
    resume = ["train", "--resume", "--out", str(run)]
    assert main([*resume, "--data", place]) == 0  # the run knows where its data are now
    assert RunFolder(run).saved().run.data == place
    for i in range(8):
        write(home / "d" / "train" / "b" / f"more{i}.png", pixels(seed=i))
    before, model = (run / "config.yaml").read_text(), RunFolder(run).saved().model
    assert main(resume) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "16 images then, 24 now" in line
    assert f"--data {place}" in line
    assert (run / "config.yaml").read_text() == before
    assert main([*resume, "--data", place]) == 0
    assert "16 images then, 24 now" in " ".join(capsys.readouterr().out.split())
    saved = RunFolder(run).saved()
    assert saved.work.images == 24
    assert saved.model == model
    assert RunFolder(run).metrics()["step"] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]  # two epochs of three steps, of which four were done
    assert main(resume) == 0
    assert "images then" not in capsys.readouterr().out


def test_further_evaluation_sets_have_a_remedy_of_their_own(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, place = home / "run", f"folder:{home / 'd'}"
    shutil.copytree(home / "d" / "test", home / "more")
    resume = ["train", "--resume", "--out", str(run), "--data", place]
    assert main([*resume, "--eval", f"more=folder:{home / 'more'}"]) == 0
    shutil.move(home / "more", home / "moved")
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.strip().endswith("pass their new location with --eval more=NEW")
    assert main(["evaluate", str(run), "--eval", f"more=folder:{home / 'moved'}"]) == 0


def test_a_run_without_a_fingerprint_is_read_as_before(home: Path) -> None:
    config = home / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    del values["data"]
    config.write_text(yaml.safe_dump(values))
    (home / "d" / "train" / "a" / "00.png").unlink()
    assert restore(home / "run", data=f"folder:{home / 'd'}").differences == ()


def test_a_run_of_another_machine_is_evaluated_on_this_one(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["run"] |= {"devices": 8, "accelerator": "cuda", "loggers": ["wandb"], "workers": 7}
    file.write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(tmp_path / "run"), "--protocol", "knn"]) == 0
    assert knn(tmp_path / "run") == knn(made / "run")


def test_an_evaluation_does_not_finish_a_run(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    assert main(["evaluate", str(tmp_path / "run"), "--protocol", "knn"]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run")]) == 0
    rank = RunFolder(tmp_path / "run").last_reading()["erank_target"]
    assert f"{rank:.1f}" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "the run has not finished" in (tmp_path / "r.html").read_text()


def test_fewer_images_on_resume_are_the_reason_that_is_given(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "made")
    for name in ("00", "01", "02", "03"):
        for file in (tmp_path / "made" / "d").rglob(f"{name}.png"):
            file.unlink()
    resume = ["train", "--out", str(tmp_path / "made" / "run"), "--resume"]
    data = ["--data", f"folder:{tmp_path / 'made' / 'd'}"]
    assert main([*resume, *data]) == 2
    assert "2 epochs of 12 images are 2 steps, but the run has taken 4 on 16 images" in capsys.readouterr().err
    assert main([*resume, *data, "--epochs", "5"]) == 0
