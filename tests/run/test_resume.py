"""A run resumed with another length or other threads, and the modules that it must import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import rankgap
from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.filters import GAINS
from rankgap.run.folder import RunFolder

TRAIN = ["train", "--batch-size", "64", "--limit", "256", "--rank-every", "2", "--protocol", "none"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


def test_a_larger_number_of_epochs_extends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "a")
    assert main([*TRAIN, "--method", "byol", "--epochs", "2", "--out", str(folder.path)]) == 0
    resume = ["train", "--out", str(folder.path), "--resume"]
    before, capsys_out = folder.metrics(), capsys.readouterr().out
    assert "byol" in capsys_out
    assert main([*resume, "--epochs", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 epochs instead of 2: learning rate and momentum continue on the schedules for 4 epochs" in said
    after, saved = folder.metrics(), folder.saved()
    assert after["step"] == [0, 2, 4, 6, 7, 8, 10, 12, 14, 15]
    assert {name: values[:5] for name, values in after.items()} == before
    assert (saved.run.epochs, saved.work.steps, saved.run.method) == (4, 16, "byol")
    assert saved.notes[-1].startswith("4 epochs instead of 2")
    rates = [saved.recipe.optimizer.rate(saved.work.clock(step), 64) for step in (8, 15)]
    assert [after["lr"][5], after["lr"][-1]] == pytest.approx(rates)
    assert after["lr"][5] > before["lr"][-1]
    assert folder.load_checkpoint().step == 16
    # The table of the resumed run bears the run's own title, not that of the default method.
    assert "simsiam" not in said
    assert "already trained for 4 epochs" in fails(capsys, *resume, "--epochs", "3")
    assert folder.saved() == saved


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--scale", "rms"], "was started without --scale: leave it out to resume"),
        (["--lr", "0.1"], "was started without --lr: leave it out to resume"),
        (["--seed", "1"], "was started with --seed 0, not 1: leave it out to resume"),
    ],
)
def test_what_a_run_was_started_with_is_said(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    assert says in fails(capsys, "train", "--out", str(tmp_path / "a"), "--resume", *flags)


def test_a_run_keeps_its_number_of_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, out = torch.get_num_threads(), tmp_path / "a"
    asked: list[int] = []  # more threads than free cores are slow
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([*TRAIN, "--epochs", "1", "--threads", str(before + 1), "--out", str(out)]) == 0
    assert asked == [before + 1, before]
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["threads"] == before + 1
    assert json.loads((out / "results.json").read_text())["threads"] == before + 1
    assert f"threads: {before + 1} (" in capsys.readouterr().out
    assert main(["train", "--out", str(out), "--resume", "--threads", str(before)]) == 0
    assert main([*TRAIN, "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    assert RunFolder(tmp_path / "b").saved().run.threads == before
    capsys.readouterr()
    assert main(["compare", str(out), str(tmp_path / "b")]) == 0
    assert f"threads: {before} (" in capsys.readouterr().out


GAIN = 'from rankgap.filters import GAINS, Gain\n\nGAINS["{0}"] = Gain.of("{0}", lambda x: x / (x + 1))\n'


def test_an_imported_gain_reaches_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rankgap.filters.gains.GAINS", GAINS)
    monkeypatch.chdir(tmp_path)
    Path("my_gain.py").write_text(GAIN.format("bent"))
    Path("again.py").write_text(GAIN.format("bent2"))
    design = ["design", "--online", "bent", "--out", "a.png"]
    assert "unknown gain 'bent'" in fails(capsys, *design)
    assert main([*design, "--import", "my_gain.py", "--import", "again.py"]) == 0
    assert {"bent", "bent2"} <= GAINS.keys()
    assert main([*TRAIN, "--epochs", "1", "--online", "bent", "--import", "my_gain.py", "--out", "run"]) == 0
    assert RunFolder(Path("run")).saved().run.imports == (str(tmp_path / "my_gain.py"),)
    for name in ("bent", "bent2"):
        del GAINS[name]
    from rankgap.run import imports

    imports._import.cache_clear()  # as in a new process
    imports._IMPORTED.clear()
    run, file, resume = str(tmp_path / "run"), str(tmp_path / "my_gain.py"), ["train", "--out", "run", "--resume"]
    hint = f"the run was trained with --import {file}: pass it again"
    # The folder may come from someone else, so reading it runs no code that it names.
    assert hint in fails(capsys, "evaluate", run)
    assert hint in fails(capsys, "embed", run, "digits")
    assert hint in fails(capsys, *resume)
    with pytest.raises(UserError, match="pass it again"):
        rankgap.load_encoder(run)
    assert "bent" not in GAINS
    assert main(["evaluate", run, "--protocol", "none", "--import", file]) == 0
    assert main(["embed", run, "digits", "--import", file]) == 0
    assert main([*resume, "--import", file]) == 0
    assert rankgap.load_encoder(run) is not None
    del GAINS["bent"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone.py", "failed: there is no such file"),
        ("no_such_module", "failed: No module named 'no_such_module'"),
        ("torn.py", "failed: "),
        ("here_only", "for the file in this folder, pass --import here_only.py"),
        ("", "failed: "),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.py").write_text("def f(:\n")
    Path("here_only.py").write_text("")
    assert says in fails(capsys, "design", "--import", name)
