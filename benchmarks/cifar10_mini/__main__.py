"""Run the mini benchmark, or continue it, and write its table and figure beside this file.

    python -m benchmarks.cifar10_mini --data hf:DIR_OR_NAME [--out runs/mini] [--rows "byol,dino"] [--workers 2]

A run that has results is not repeated, and a run that was interrupted is resumed. The table is written after every
run, and keeps the rows of results.json that --rows leaves out. On a CPU, as many workers as cores, with one thread
each, finish the table soonest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.cifar10_mini.runs import (
    BASELINE,
    DESIGNS,
    MULTICROP,
    RANK_EVERY,
    Finished,
    mini_config,
    multicrop,
    result_row,
    row_title,
    run_all,
    untrained_scores,
)
from benchmarks.machine import machine
from rankgap.show.columns import (
    ERANK_FEATURES,
    ERANK_ONLINE,
    ERANK_TARGET,
    KNN,
    LINEAR,
    RANK_DIFFERENCE,
    Column,
    plus_minus,
)
from rankgap.show.figures import mini_figure

HERE = Path(__file__).parent
KEPT = ("epoch", "erank_online", "erank_target")  # readings of a run that results.json keeps


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{np.mean(values):.1f}"
    return plus_minus(float(np.mean(values)), float(np.std(values, ddof=1)))


def gain(runs: list[Finished], baseline: list[Finished], column: Column = KNN) -> str:
    """The difference in points from the baseline, seed by seed: mean and 95% interval (Student's t)."""
    scores = {run.seed: column.scaled(run.results) for run in baseline}
    differences = np.array([column.scaled(run.results) - scores[run.seed] for run in runs if run.seed in scores])
    if len(differences) < 2 or not differences.any():
        return "-"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return plus_minus(float(differences.mean()), float(half), "+.1f")


def first_alarms(runs: list[Finished]) -> str:
    """Each kind of alarm in a row's runs, with the epoch of the first and the number of runs that raised it."""
    began: dict[str, list[float]] = {}
    for run in runs:
        epochs_a_step = run.metrics["epoch"][1] / RANK_EVERY
        for alarm in {alarm["kind"]: alarm for alarm in reversed(run.results["alarms"])}.values():
            began.setdefault(alarm["kind"], []).append(epochs_a_step * alarm["step"])
    said = [f"{kind} ({min(epochs):.1f}; {len(epochs)} of {len(runs)})" for kind, epochs in began.items()]
    return ", ".join(said) or "none"


def table(rows: dict[str, list[Finished]], untrained: list[dict[str, Any]]) -> str:
    """The Markdown table: accuracies in percent, and effective ranks of the last batch's correlation."""
    head = (
        "| row | seeds | kNN % | kNN over SimSiam | linear % | erank online | erank target | rank difference | "
        "smallest difference after epoch 1 | erank of features | alarm (first at epoch) | s / run |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|\n"
    )

    def line(title: str, runs: list[Finished]) -> str:
        def over(column: Column) -> str:
            return spread([column.scaled(run.results) for run in runs])

        smallest = min(float(run.after_first_epoch().min()) for run in runs)
        cells = [
            title,
            str(len(runs)),
            over(KNN),
            gain(runs, rows.get(BASELINE, [])),
            over(LINEAR),
            over(ERANK_ONLINE),
            over(ERANK_TARGET),
            over(RANK_DIFFERENCE),
            f"{smallest:.2f}",
            over(ERANK_FEATURES),
            first_alarms(runs),
            f"{np.median([run.results['seconds'] for run in runs]):.0f}",
        ]
        return "| " + " | ".join(cells) + " |\n"

    floor = [spread([column.scaled(scores) for scores in untrained]) for column in (KNN, LINEAR)]
    last = f"| (untrained encoder) | {len(untrained)} | {floor[0]} |  | {floor[1]} |  |  |  |  |  |  |  |\n"
    return head + "".join(line(title, runs) for title, runs in rows.items()) + last


def recorded() -> tuple[dict[str, list[Finished]], list[dict[str, Any]]]:
    """The rows of results.json, and the scores of untrained encoders in it."""
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.is_file() else {"runs": [], "untrained": []}
    rows: dict[str, list[Finished]] = {}
    for run in found["runs"]:
        metrics = {name: run[name] for name in KEPT}
        rows.setdefault(run["row"], []).append(Finished(run["row"], run["seed"], run["results"], metrics))
    return rows, found["untrained"]


def write(rows: dict[str, list[Finished]], untrained: list[dict[str, Any]], workers: int) -> None:
    """Write the table, the figure and the raw results beside this file."""
    text = (HERE / "ABOUT.md").read_text()
    protocol = next(iter(rows.values()))[0].results.get("protocol", {})
    lines = [f"- {name}: {said}\n" for name, said in protocol.items()]
    (HERE / "README.md").write_text(
        f"{text}\nMachine: {machine()}, {workers} run(s) at a time.\n\n{table(rows, untrained)}\n"
        f"![kNN, linear and ranks of each row](mini.png)\n\nProtocols:\n\n{''.join(lines)}"
    )
    mini_figure([result_row(title, runs) for title, runs in rows.items()], HERE / "mini.png")
    raw = [
        {"row": run.title, "seed": run.seed, "results": run.results} | {name: run.metrics[name] for name in KEPT}
        for runs in rows.values()
        for run in runs
    ]
    (HERE / "results.json").write_text(json.dumps({"untrained": untrained, "runs": raw}) + "\n")


def main() -> None:
    """Run every row with every seed, and write after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="the data, as in rankgap train (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="run folders (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, joined by commas (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=10_000, help="training images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--rows", help="titles as the table has them, joined by commas (default: all)")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    every = [
        mini_config(*design, data=given.data, seed=seed, out=given.out, limit=given.limit, epochs=given.epochs)
        for seed in seeds
        for design in DESIGNS
    ]
    every += [multicrop(config) for config in every if config.title in MULTICROP]
    titles = list(dict.fromkeys(map(row_title, every)))
    asked = given.rows.split(",") if given.rows else titles
    if unknown := [name for name in asked if name not in titles]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(titles)}")
    found, untrained = recorded()
    rows = {name: [] if name in asked else found.get(name, []) for name in titles}
    if BASELINE in asked or not untrained:
        untrained = [untrained_scores(config) for config in every if row_title(config) == BASELINE]
    for run in run_all([config for config in every if row_title(config) in asked], given.workers):
        rows[run.title].append(run)
        write({name: runs for name, runs in rows.items() if runs}, untrained, given.workers)


if __name__ == "__main__":
    main()
