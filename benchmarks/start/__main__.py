"""Train an encoder, continue it on other images and compare; write the table beside this file.

    python -m benchmarks.start --data hf:DIR_OR_NAME [--out runs/start] [--workers 2]

The images of each seed are written as Parquet below --out. A run that has results is not repeated, and a run that
was interrupted is resumed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from benchmarks.cifar10_mini.__main__ import gain, spread
from benchmarks.cifar10_mini.runs import Finished, run_all
from benchmarks.machine import machine
from rankgap.run.config import TrainConfig
from rankgap.show.columns import ERANK_FEATURES, KNN, LINEAR, Column

HERE = Path(__file__).parent
START, CONTINUED, SCRATCH = "frozen start", "continued", "from scratch"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained.

    Args:
        data: the whole set, by its name on the Hub or the folder of its Parquet files.
        out: folder of the images and of the runs.
        method: a method of the zoo.
        first: images of the first run.
        then: images of the other runs.
        first_epochs: epochs of the first run.
        epochs: epochs of the other runs.
    """

    data: str
    out: Path
    method: str
    first: int
    then: int
    first_epochs: int
    epochs: int

    def images(self, seed: int) -> tuple[str, str]:
        """The data of the first run and of the others, in the form of `--data`, written where they are missing."""
        found = datasets.load_dataset(self.data)
        order = np.random.default_rng(seed).permutation(len(found["train"]))
        parts = {"first": order[: self.first], "then": order[self.first : self.first + self.then]}
        for name, rows in parts.items():
            folder = self.out / f"images-{name}-seed{seed}"
            if not (folder / "test.parquet").is_file():  # the last one to be written
                folder.mkdir(parents=True, exist_ok=True)
                found["train"].select(rows).to_parquet(folder / "train.parquet")
                found["test"].to_parquet(folder / "test.parquet")
        first, then = (f"hf:{(self.out / f'images-{name}-seed{seed}').resolve()}" for name in parts)
        return first, then

    def configs(self, seed: int) -> tuple[TrainConfig, TrainConfig, TrainConfig]:
        """The first run, the one that continues it, and the one from scratch."""
        first, then = self.images(seed)
        home = self.out / f"seed{seed}"

        def config(name: str, data: str, epochs: int, **more: Any) -> TrainConfig:
            return TrainConfig(
                method=self.method,
                data=data,
                epochs=epochs,
                backbone="resnet_tiny",
                seed=seed,
                out=str(home / name),
                **more,
            )

        return (
            config("first", first, self.first_epochs, protocol=()),
            config(CONTINUED, then, self.epochs, init=f"run:{home / 'first'}"),
            config(SCRATCH.replace(" ", "-"), then, self.epochs),
        )


def table(rows: dict[str, list[Finished]]) -> str:
    """The Markdown table: accuracies in percent, and the effective rank of the features."""
    start = rows[START]
    head = (
        "| encoder | seeds | kNN % | over the start | linear % | over the start | erank of features |\n"
        "|---|--:|--:|--:|--:|--:|--:|\n"
    )

    def line(title: str, runs: list[Finished]) -> str:
        def over(column: Column) -> str:
            return spread([column.scaled(run.results) for run in runs])

        cells = [title, str(len(runs)), over(KNN), gain(runs, start, KNN), over(LINEAR), gain(runs, start, LINEAR)]
        return f"| {' | '.join(cells)} | {over(ERANK_FEATURES)} |\n"

    return head + "".join(line(title, runs) for title, runs in rows.items())


def write(rows: dict[str, list[Finished]], setting: Setting, workers: int) -> None:
    """Write the table and the raw results beside this file."""
    protocol = rows[CONTINUED][0].results["protocol"]
    lines = "".join(f"- {name}: {said}\n" for name, said in protocol.items())
    (HERE / "README.md").write_text(
        f"{(HERE / 'ABOUT.md').read_text()}\nMachine: {machine()}, {workers} run(s) at a time.\n\n"
        f"{setting.method}: {setting.first:,} images for {setting.first_epochs} epochs, then {setting.then:,} for "
        f"{setting.epochs}.\n\n"
        f"{table(rows)}\nProtocols:\n\n{lines}"
    )
    raw = [{"row": run.title, "seed": run.seed, "results": run.results} for runs in rows.values() for run in runs]
    (HERE / "results.json").write_text(json.dumps({"runs": raw}) + "\n")


def main() -> None:
    """Run the three encoders of every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as hf:DIR_OR_NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/start"), help="run folders (default: %(default)s)")
    parser.add_argument("--method", default="swav", help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (default: %(default)s)")
    parser.add_argument("--first", type=int, default=40_000, help="images of the start (default: %(default)s)")
    parser.add_argument("--then", type=int, default=2_000, help="other images (default: %(default)s)")
    parser.add_argument("--first-epochs", type=int, default=10, help="of the start (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=50, help="of the other runs (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    given = parser.parse_args()
    setting = Setting(
        data=given.data.removeprefix("hf:"),
        out=given.out,
        method=given.method,
        first=given.first,
        then=given.then,
        first_epochs=given.first_epochs,
        epochs=given.epochs,
    )
    every = [setting.configs(int(seed)) for seed in given.seeds.split(",")]
    list(run_all([first for first, _, _ in every], given.workers))  # the others begin with their encoders
    runs = list(run_all([config for _, *others in every for config in others], given.workers))
    rows: dict[str, list[Finished]] = {START: [], CONTINUED: [], SCRATCH: []}
    for continued, scratch in zip(runs[::2], runs[1::2], strict=True):
        rows[START].append(Finished(START, continued.seed, continued.results["start"], {}))
        rows[CONTINUED].append(Finished(CONTINUED, continued.seed, continued.results, {}))
        rows[SCRATCH].append(Finished(SCRATCH, scratch.seed, scratch.results, {}))
    write(rows, setting, given.workers)
    print(table(rows))


if __name__ == "__main__":
    main()
