"""Train every row and every fault, and compare each verdict with measurements of the encoder.

    python -m benchmarks.verdicts --data hf:DIR_OR_NAME [--out runs/verdicts] [--seeds 0,1]

A finished run is not repeated, and an interrupted run is resumed. The table is written at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.machine import machine
from benchmarks.verdicts.cases import CASES, Bench
from benchmarks.verdicts.runs import Judged, Truth, run_one, untrained
from rankgap.data import load_data

HERE = Path(__file__).parent
CONTROLS = ("siamese", "symsimsiam")
GONE, FEW = 1.5, 1 / 3


class Standard:
    """The standard by which verdicts are judged, for one bench and seed.

    Args:
        start: the untrained encoder.
        rows: the runs, from which the published rows are taken.
    """

    def __init__(self, start: Truth, rows: Sequence[Judged]) -> None:
        sound = [run.truth for run in rows if not run.fault and run.title not in CONTROLS]
        self.start = start
        self.knn = (start.knn + median(each.knn for each in sound)) / 2
        self.outputs = FEW * median(each.outputs for each in sound)

    def collapsed(self, run: Judged) -> bool:
        """Whether training made the encoder worse and left it almost no dimensions."""
        return run.truth.knn < self.start.knn and run.truth.features < 3

    def right(self, run: Judged) -> bool:
        """Whether the verdict is right."""
        sound = run.truth.knn >= self.knn
        match run.verdict.kind if run.verdict else "collapsed":
            case "healthy":
                return not self.collapsed(run)
            case "shrinking":
                return not sound or not run.truth.outputs >= self.outputs
            case _:
                return not sound or not run.truth.outputs >= GONE


def row(run: Judged, standard: Standard) -> str:
    """A row of the table."""
    said = run.verdict.kind if run.verdict else "stopped: not finite"
    alarms = ", ".join(f"{alarm.kind} ({alarm.step / run.steps:.0%})" for alarm in run.alarms[:2]) or "none"
    cells = [
        run.title,
        str(run.seed),
        f"{100 * run.truth.knn:.1f}",
        f"{run.truth.features:.1f}",
        f"{run.truth.outputs:.1f}",
        "yes" if standard.collapsed(run) else "no",
        said,
        alarms,
        "yes" if standard.right(run) else "**no**",
    ]
    return "| " + " | ".join(cells) + " |\n"


def section(bench: Bench, runs: list[Judged], standards: dict[int, Standard]) -> str:
    """The counts and the table of one bench."""
    head = (
        "| run | seed | kNN % | rank of features | rank of outputs | collapsed? | verdict | "
        "first alarms (at) | right |\n|---|--:|--:|--:|--:|---|---|---|---|\n"
    )
    starts = "; ".join(
        f"seed {seed}: kNN {100 * each.start.knn:.1f}%, rank of features {each.start.features:.1f}; sound from "
        f"{100 * each.knn:.1f}%, few dimensions below {each.outputs:.1f}"
        for seed, each in standards.items()
    )
    healthy = [run for run in runs if run.verdict and run.verdict.kind == "healthy"]
    missed = [run for run in healthy if standards[run.seed].collapsed(run)]
    accused = [run for run in runs if run not in healthy and not standards[run.seed].right(run)]
    unsound = [run for run in healthy if run.truth.knn < standards[run.seed].knn]
    collapsed = sum(standards[run.seed].collapsed(run) for run in runs)

    def named(found: list[Judged]) -> str:
        return f"{len(found)}" + (f" ({'; '.join(f'{r.title}, seed {r.seed}' for r in found)})" if found else "")

    return (
        f"## {bench.name}\n\n"
        f"{len(runs)} runs of {runs[0].steps} steps. Untrained, {starts}.\n\n"
        f"- collapsed encoders: {collapsed}, of which called healthy: {named(missed)}\n"
        f"- false alarms: {named(accused)}\n"
        f"- called healthy, but not sound: {named(unsound)}\n\n"
        f"{head}{''.join(row(run, standards[run.seed]) for run in runs)}\n"
    )


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="cifar10", help="CIFAR-10, as in `rankgap train --data` (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/verdicts"), help="folder for the runs (default: %(default)s)"
    )
    parser.add_argument("--seeds", default="0,1", help="seeds, joined by commas (default: %(default)s)")
    given = parser.parse_args()
    benches = (
        Bench(name="digits", data="digits", limit=None, epochs=40, batch_size=128),
        Bench(name="cifar10", data=given.data, limit=4000, epochs=20, batch_size=128),
    )
    seeds = [int(seed) for seed in given.seeds.split(",")]
    text, raw = [(HERE / "ABOUT.md").read_text(), f"\nMachine: {machine()}.\n\n"], {}
    for bench in benches:
        images, _ = load_data(bench.data)
        runs, standards = [], {}
        for seed in seeds:
            found = [run_one(case, bench, seed, given.out, images) for case in CASES]
            standards[seed] = Standard(untrained(bench, seed, given.out), found)
            runs += found
        text.append(section(bench, runs, standards))
        raw[bench.name] = {
            "untrained": {seed: asdict(each.start) for seed, each in standards.items()},
            "runs": [asdict(run) for run in runs],
        }
    (HERE / "README.md").write_text("".join(text).rstrip() + "\n")
    (HERE / "results.json").write_text(json.dumps(raw) + "\n")


if __name__ == "__main__":
    main()
