"""The live view shows what a run is doing, how it ended, or that it is dead."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankgap.cli import main
from rankgap.run.beat import PATIENCE
from rankgap.run.folder import RunFolder
from rankgap.show.live import _Lines, live_view, sparkline
from rankgap.show.report.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    flags = ["--epochs", "1", "--batch-size", "64", "--limit", "256", "--protocol", "none", "--rank-every", "1"]
    assert main(["train", *flags, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("state", "change", "says"),
    [
        ("training", {}, "no alarm"),
        ("training", {"moved": -500.0}, "its process is alive, but finished no step for 8 min 20 s"),
        ("training", {"time": -PATIENCE - 30, "host": "elsewhere"}, ", last seen 1 min 30 s ago; resume with"),
        ("training", {"time": -20.0, "pid": 10**9}, "dead: its process 1000000000 is gone, last seen 20 s ago"),
        ("evaluating", {}, "now evaluating its features"),
        ("interrupted", {"time": -1e6}, "interrupted at step 3; resume with: rankgap train --out"),
        ("failed", {"time": -1e6}, "stopped by an error at step 3; resume with: rankgap train --out"),
        ("finished", {"time": -1e6}, "finished"),
    ],
)
def test_the_view_says_how_a_run_is(
    state: str, change: dict[str, Any], says: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    now = time.time()
    beat = {"state": state, "host": socket.gethostname(), "pid": os.getpid()} | change
    beat |= {"step": 3, "seconds": 65.0} | {name: now + change.get(name, 0.0) for name in ("moved", "time")}
    (tmp_path / "run" / "heartbeat.json").write_text(json.dumps(beat))
    shown = Console(width=200, record=True)
    shown.print(live_view(RunFolder(tmp_path / "run"), 64.0, width=200))
    text = shown.export_text()
    assert says in text
    assert "1 min 5 s so far" in text
    assert ("dead" in text) == ("time" in change and state == "training")
    assert ("verdict: healthy: the outputs use" in text) == (state == "finished")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_curves_are_as_wide_as_the_terminal(width: int, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    many = [",".join([str(i), *rows[0].split(",")[1:]]) for i in range(300)]
    (tmp_path / "run" / "metrics.csv").write_text("\n".join([header, *many]) + "\n")
    shown = Console(width=width, record=True)
    shown.print(live_view(RunFolder(tmp_path / "run"), None, width=width))
    lines = shown.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines if line.startswith(("loss", "erank", "rank"))) == width


def test_all_views_of_a_run_know_its_length_and_so_show_one_alarm(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Constant outputs count after 5 readings in so short a run, and after 40 steps in a long one."""
    shutil.copytree(run, tmp_path / "run")
    header, first, *_ = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True)) | {"spread": "0", "spread_target": "0"}
    rows = [",".join((row | {"step": str(step)}).values()) for step in range(6)]
    (tmp_path / "run" / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    folder = RunFolder(tmp_path / "run")
    Console(width=200).print(live_view(folder, None, width=200))
    assert "alarm: complete at step 4" in capsys.readouterr().out
    _Lines(folder).update(None)
    assert "alarm: complete at step 4" in capsys.readouterr().out
    page = Run(folder, "a")
    assert [(alarm.kind, alarm.step) for alarm in page.alarms] == [("complete", 4)]
    assert page.diagnosis is not None
    assert page.diagnosis.kind == "complete"


def test_a_curve_is_from_its_smallest_to_its_largest_value() -> None:
    assert sparkline([0.0, 7.0, float("nan")], 80) == "▁█ "
