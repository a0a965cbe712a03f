"""Benchmarks on a GPU: the speed suites, training steps of ResNet-18 by method, and whole CIFAR-10 runs.

    python -m benchmarks.gpu --data hf:DIR_OR_NAME [--out runs/gpu] [--seconds 540]

A call measures what is not measured yet until its seconds are over, and writes gpu.md beside this file. Call it
again to continue; a training run that was cut short is resumed. --tiny does everything at a small size, to try the
script on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rankgap as rg
from benchmarks.__main__ import measured, tables
from benchmarks.machine import machine, matrix_rate
from benchmarks.suites.step import Case, our_side, our_step, work_of_a_step
from benchmarks.suites.timing import Settings
from rankgap.run.folder import RunFolder

HERE = Path(__file__).parent
DESIGNS: dict[str, dict[str, str]] = {
    "simsiam": {},
    "byol": {},
    "swav": {},
    "dino": {},
    "online power:1": {"online": "power:1"},
    "target power:-0.5": {"target": "power:-0.5"},
}
NOT = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The size of everything that is measured.

    Args:
        backbone: the encoder of steps and runs.
        batches: the numbers of images per step.
        steps: the number of steps in a measurement.
        epochs: the number of epochs in a run.
        runs: the designs to train in full.
        suites: the suites of `python -m benchmarks`.
    """

    backbone: str = "resnet18"
    batches: tuple[int, ...] = (256, 1024)
    steps: int = 40
    epochs: int = 20
    runs: tuple[str, ...] = ("target power:-0.5", "simsiam", "online power:1", "byol")
    suites: tuple[str, ...] = ("monitor", "filters", "eval", "views", "scale", "step")


TINY = Size(backbone="resnet_tiny", batches=(16,), steps=4, epochs=1, runs=("byol",), suites=("report",))


def step(design: str, size: Size, batch: int) -> dict[str, float]:
    """Images per second of a training step, and its share of the machine's bf16 rate."""
    method = rg.design(design if design in rg.METHODS else "simsiam", **DESIGNS[design])
    case = Case(size.backbone, batch, size.steps, 0, 0)
    module, data, _ = our_side(case, method, small=False)
    our_step(module, data)
    rates, seconds = [], []
    for _ in range(3):
        rates.append(matrix_rate())
        seconds.append(our_step(module, data))
    per_step = statistics.median(seconds)
    flops = work_of_a_step(module, data.images.batch(range(batch)).images)
    return {
        "images_per_second": batch / per_step,
        "milliseconds": 1000 * per_step,
        "share": flops / per_step / statistics.median(rates),
    }


def run(design: str, size: Size, data: str, out: Path, deadline: float) -> dict[str, Any] | None:
    """The results of a whole run; None if the time was over before the run."""
    folder = RunFolder(out / design.replace(" ", "-").replace(":", ""))
    flags = [f"--{side}={gain}" for side, gain in DESIGNS[design].items()]
    method = design if design in rg.METHODS else "simsiam"
    resume = ["--resume"] if folder.checkpoint.is_file() else ["--overwrite"]
    command = [
        *(sys.executable, "-m", "rankgap", "train", "--method", method, *flags, "--data", data),
        *("--backbone", size.backbone, "--epochs", str(size.epochs), "--out", str(folder.path)),
        *([] if size.epochs == 1 else ["--compile"]),
    ]
    process = subprocess.Popen([*command, *resume])
    try:
        process.wait(max(deadline - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # the run writes a checkpoint and ends
        process.wait(60)
    return folder.results() or None


def units(size: Size, data: str, out: Path, deadline: float) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Everything that can be measured, by name: the seconds that it needs, and the call."""
    steps = {
        f"step {design} {batch}": (20.0, partial(step, design, size, batch))
        for batch in size.batches
        for design in DESIGNS
    }
    runs = {f"run {design}": (60.0, partial(run, design, size, data, out, deadline)) for design in size.runs}
    suites = {f"suite {name}": (60.0, partial(measured, name, Settings(repeats=5))) for name in size.suites}
    return steps | dict(itertools.islice(suites.items(), 3)) | runs | suites


def report(done: dict[str, Any], size: Size) -> str:
    """The tables, in which values that are missing are marked."""
    lines = ["| step | " + " | ".join(f"images/s, batch {b} | share of bf16 rate" for b in size.batches) + " |"]
    lines.append("|---|" + "--:|" * 2 * len(size.batches))
    for design in DESIGNS:
        cells = []
        for batch in size.batches:
            found = done.get(f"step {design} {batch}")
            cells += [f"{found['images_per_second']:,.0f}", f"{found['share']:.0%}"] if found else [NOT, NOT]
        lines.append(f"| {design} | {' | '.join(cells)} |")
    lines += ["", f"| {size.epochs} epochs | kNN | linear | minutes of training |", "|---|--:|--:|--:|"]
    for design in size.runs:
        found = done.get(f"run {design}")
        cells = (
            [f"{found['knn']:.1%}", f"{found['linear']:.1%}", f"{found['seconds'] / 60:.1f}"]
            if found
            else [NOT] * 3
        )
        lines.append(f"| {design} | {' | '.join(cells)} |")
    suites = {name: done[f"suite {name}"] for name in size.suites if f"suite {name}" in done}
    lines += ["", re.sub("^#", "##", tables(suites, size.suites), flags=re.MULTILINE)]  # below the page's title
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is left, as far as the seconds allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, such as hf:DIR_OR_NAME")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="run folders and the record of what is done"
    )
    parser.add_argument("--table", type=Path, default=HERE / "gpu.md", help="file of the tables")
    parser.add_argument("--seconds", type=float, default=540, help="seconds after which nothing new is started")
    parser.add_argument("--tiny", action="store_true", help="use small sizes, to try the script")
    given = parser.parse_args()
    size, deadline = TINY if given.tiny else Size(), time.monotonic() + given.seconds
    given.out.mkdir(parents=True, exist_ok=True)
    record = given.out / "done.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    for name, (needed, call) in units(size, given.data, given.out, deadline).items():
        if name not in done and time.monotonic() + needed < deadline:
            found = call()
            if found is not None:
                done[name] = found
                record.write_text(json.dumps(done, indent=2) + "\n")
                print(f"{name}: done", flush=True)
    where = machine() if done else "no machine with a GPU was available"
    given.table.write_text(f"# On a GPU\n\nMachine: {where}\n\n{report(done, size)}")
    left = [name for name in units(size, given.data, given.out, deadline) if name not in done]
    print(f"{len(done)} done, left: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
