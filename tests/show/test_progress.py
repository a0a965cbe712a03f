"""Progress: lines that fit the terminal, lines in a pipe, and the estimate after the first steps."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from rankgap.cli import main
from rankgap.run.build import build
from rankgap.run.module import SelfSupervised
from rankgap.run.optimizer import OptimizerOptions
from rankgap.run.work import Work
from rankgap.show import progress
from rankgap.show.pace import Pace, duration, status_line
from rankgap.show.progress import Progress, progress_lines
from rankgap.show.terminal import console
from rankgap.views import ViewConfig, Views

PARTS = ["loss -0.912", "erank 123.4 -> 234.5", "1,234 images/s"]
LONG = "directset online power:0.5 target power:-0.5"
TRAIN = ["train", "--epochs", "2", "--batch-size", "64", "--limit", "256", "--protocol", "none"]


def shown(name: str, width: int) -> list[str]:
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(progress_lines(name, 1_234, 60_000, "12 h 34 min left", PARTS, width))
    return out.export_text().splitlines()


@pytest.mark.parametrize("name", ["byol", LONG])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_time_left_stays_at_every_width_and_nothing_is_cut(name: str, width: int) -> None:
    first, second = shown(name, width)
    assert first.rstrip().endswith("12 h 34 min left")
    assert "loss -0.912" in second
    assert max(map(len, (first, second))) <= width
    assert "…" not in first + second
    if width >= 80:
        assert name in first
        assert "1,234/60,000" in first
        assert second.split("  ") == PARTS


def test_the_bar_is_the_first_to_go() -> None:
    assert "╸" in shown("byol", 80)[0]
    assert "╸" not in shown(LONG, 80)[0]


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    pace = Pace()
    assert pace.steps_per_second is None
    pace.mark(0.0, 3)
    assert pace.steps_per_second is None
    for second in range(100):
        pace.mark(second + 0.5, 3)  # stands still
    assert pace.steps_per_second is None
    for tenth in range(1_000):
        pace.mark(100 + tenth / 10, 3 + tenth)
    assert pace.steps_per_second == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3_599, "1 h 0 min"), (86_300, "23 h 58 min"), (86_400, "1 d 0 h")],
)
def test_times_are_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_fits_eighty_columns() -> None:
    work = Work(images=50_000, batch_size=256, epochs=1_000, features=128)
    row = {"loss": -0.9876, "erank_online": 123.45, "erank_target": 234.56}
    line = status_line(100_000, row, work, 1_234.0)
    assert len(line) <= 80
    assert line.startswith("epoch 512.8/1000  loss -0.988  erank 123 -> 235  1,234 images/s  ")
    assert status_line(195_000, {}, work, None) == "epoch 1000/1000"


def test_a_pipe_gets_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all("loss" in line and "erank" in line and "images/s" in line for line in lines)
    assert "left" in lines[0]
    assert all(character.isprintable() for character in out.replace("\n", ""))


def training(epochs: int) -> SelfSupervised:
    """A module that is not trained here: its steps are counted by hand."""
    view = ViewConfig()
    work = Work(images=64, batch_size=64, epochs=epochs, features=128)
    model = build("simsiam", backbone="resnet_tiny", channels=1, size=8)
    return SelfSupervised(model, Views([view, view], 8, [0.3], [0.4]), OptimizerOptions(lr=0.1), work)


@pytest.mark.parametrize(
    ("step_takes", "computes", "threads", "says"),
    [
        (20.0, 19.0, 2, ["100 epochs will take about 33 min"]),
        (20.0, 8.0, 1, ["100 epochs will take about 33 min"]),
        (
            20.0,
            8.0,
            2,
            ["take about 33 min", "the 2 threads wait", "40% of its time", "--threads 1 is"],
        ),
        (200.0, 199.0, 1, ["epochs will take about 5 h 33 min", "about 27 min with --size 64"]),
    ],
)
def test_the_first_steps_say_once_how_long_the_run_takes_and_what_would_shorten_it(
    step_takes: float,
    computes: float,
    threads: int,
    says: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0, cpu=0.0)
    times = SimpleNamespace(perf_counter=lambda: clock.now, thread_time=lambda: clock.cpu)
    monkeypatch.setattr(progress, "time", times)
    monkeypatch.setattr(console, "width", 300)
    module, shows = training(100), Progress("simsiam")
    shows.plan = cast(
        Any,
        SimpleNamespace(
            backbone="resnet_tiny",
            size=224,
            work=module.work,
            train=SimpleNamespace(channels=3),
            device=torch.device("cpu"),
            config=SimpleNamespace(threads=threads, compile=False, init=None),
        ),
    )
    shows.on_train_start(cast(Any, None), module)
    for _ in range(4):
        shows.on_train_batch_start()
        clock.now, clock.cpu, module.step = clock.now + step_takes, clock.cpu + computes, module.step + 1
        shows.on_train_batch_end(cast(Any, None), module)
    out = capsys.readouterr().out
    assert all(out.count(part) == 1 for part in says)
    for part in ("--size", "--threads 1"):
        assert (part in out) == any(part in said for said in says)
    assert out.count("epoch ") == 4  # its steps are epochs
