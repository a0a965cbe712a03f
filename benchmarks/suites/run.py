"""A whole mini run, from the shell to the report, against the time of its training steps."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.suites.timing import Row, Settings, seconds
from rankgap.run.folder import RunFolder


def measure(settings: Settings) -> list[Row]:
    """One row for imports, data, 10 epochs, kNN, linear probe and report; no row if there is no data."""
    if settings.data is None:
        return []
    rankgap = str(Path(sys.executable).with_name("rankgap"))
    times, ratios = [], []
    with tempfile.TemporaryDirectory() as home:
        for repeat in range(settings.repeats):
            out = f"{home}/{repeat}"
            train = ["train", "--data", settings.data, "--limit", "10000", "--epochs", "10", "--out", out]
            network = ["--method", "simsiam", "--backbone", "resnet_tiny"]
            commands = [[*train, *network], ["report", out, "--out", f"{out}.html"]]

            def whole(commands: list[list[str]] = commands) -> None:
                for command in commands:
                    subprocess.run([rankgap, *command], check=True, capture_output=True)

            times.append(seconds(whole))
            ratios.append(times[-1] / RunFolder(Path(out)).results()["seconds"])
    ratio = statistics.median(ratios)
    return [
        Row(
            what="rankgap train and report: SimSiam, resnet_tiny, 10,000 images, 10 epochs, kNN, linear probe",
            against="its training steps",
            seconds=statistics.median(times),
            ratio=ratio,
            spread=(min(ratios), max(ratios)),
            bar="1.15x the time at most",
            met=ratio <= 1.15,
        )
    ]
