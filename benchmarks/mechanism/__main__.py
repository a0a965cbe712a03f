"""Measure the filters of trained models, train with a measured one, correlate; write tables and raw results here.

    python -m benchmarks.mechanism --data hf:DIR_OR_NAME [--out runs/mini] [--workers 2]

The runs are those of the mini benchmark. Those that exist are read, and the others are trained. Early effective
ranks and accuracy come from its results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from benchmarks.cifar10_mini.__main__ import recorded
from benchmarks.cifar10_mini.runs import mini_config, pooled, run_all
from benchmarks.machine import machine
from benchmarks.mechanism.analysis import (
    early_difference,
    foretold,
    interval,
    transfer_tau,
    with_its_own_filter,
)
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.show.columns import KNN, plus_minus
from rankgap.spectra.pair import PairSpectrum

HERE = Path(__file__).parent
METHODS = ("byol", "simsiam", "swav", "dino")
DIGITS = 5


def summary(method: str, seed: int, pair: PairSpectrum) -> dict[str, Any]:
    """A model's scores, and its filter along the target's directions."""
    alignment = pair.eigenspace_alignment
    energy = pair.spectrum_target[: len(alignment)].square()
    columns = {
        "x": pair.spectrum_target[: len(pair.transfer)] / pair.rows**0.5,
        "measured_filter": pair.measured_filter,
        "transfer": pair.transfer,
        "eigenspace_alignment": alignment,
    }
    return {
        "method": method,
        "seed": seed,
        "low_pass_score": float(pair.low_pass_score),
        "transfer_score": float(pair.transfer_score),
        "transfer_tau": transfer_tau(pair),
        "mean_alignment": float(alignment[:512].mean()),
        "alignment_by_energy": float((alignment * energy).sum() / energy.sum()),
    } | {name: [float(f"{v:.{DIGITS}g}") for v in values.tolist()] for name, values in columns.items()}


def cell(values: list[float], digits: int = 2) -> str:
    """Mean over seeds with its interval, for a table."""
    return plus_minus(*interval(values), f".{digits}f")


def report(found: dict[str, Any]) -> str:
    """The tables."""
    keys = ("low_pass_score", "transfer_score", "transfer_tau", "mean_alignment", "alignment_by_energy")
    lines = [f"Machine: {found['machine']}.\n", "| method | seeds | " + " | ".join(keys).replace("_", " ") + " |"]
    lines.append("|---|--:|" + "--:|" * len(keys))
    for method in dict.fromkeys(f["method"] for f in found["filters"]):
        runs = [f for f in found["filters"] if f["method"] == method]
        lines.append(
            f"| {method} | {len(runs)} | " + " | ".join(cell([f[key] for f in runs]) for key in keys) + " |"
        )
    lines += ["", "| row | kNN % of each seed | kNN % | rank difference |", "|---|---|--:|--:|"]
    for row, runs in found["replaced"].items():
        knn, difference = [KNN.scaled(r) for r in runs], [r["rank_difference"] for r in runs]
        each = ", ".join(KNN.cell(r) for r in runs)
        lines.append(f"| {row} | {each} | {cell(knn, 1)} | {cell(difference)} |")
    f = found["foretold"]
    lines.append(
        f"\nSpearman's correlation of early rank difference and final kNN: {f['correlation']:+.2f}, 95% interval "
        f"{f['low']:+.2f} to {f['high']:+.2f}, {f['runs']} runs of {f['designs']} designs."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train or read, measure, train again, correlate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as rankgap train takes it (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="run folders (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, joined by commas (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]

    def configs(method: str, online: str | None = None) -> list[TrainConfig]:
        return [mini_config(method, online, None, data=given.data, seed=seed, out=given.out) for seed in seeds]

    trained = {method: configs(method) for method in METHODS}
    done = list(run_all([config for each in trained.values() for config in each], given.workers))
    filters = [
        summary(method, config.seed, pooled(RunFolder(config.path)))
        for method, each in trained.items()
        for config in each
    ]
    replaced = {"simsiam": [run.results for run in done if run.title == "simsiam"]}
    for kind in ("measured_filter", "transfer"):
        run = functools.partial(with_its_own_filter, filters=filters, kind=kind)
        again = list(run_all(configs("simsiam", f"own_{kind}"), given.workers, run))
        replaced[again[0].title] = [run.results for run in again]
    rows, _ = recorded()
    runs = [(name, early_difference(run), run.results["knn"]) for name, each in rows.items() for run in each]
    found = {
        "machine": machine(),
        "filters": filters,
        "replaced": replaced,
        "foretold": dataclasses.asdict(foretold(*zip(*runs, strict=True))),
        "early": [dict(zip(("row", "rank_difference", "knn"), run, strict=True)) for run in runs],
    }
    (HERE / "results.json").write_text(json.dumps(found) + "\n")
    (HERE / "README.md").write_text((HERE / "ABOUT.md").read_text() + "\n" + report(found))


if __name__ == "__main__":
    main()
