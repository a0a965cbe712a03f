"""Train small encoders and compare their ranks with what they are worth; write the tables beside this file.

    python -m benchmarks.what_ranks_miss --data hf:DIR_OR_NAME [--out runs/what_ranks_miss]

Runs go one after another, with one thread. A run that has results is not repeated, and what was measured of it is
kept in its folder (`measured-*.json`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from scipy.stats import spearmanr

from benchmarks.cifar10_mini.__main__ import recorded
from benchmarks.cifar10_mini.runs import run_one
from benchmarks.machine import machine
from benchmarks.mechanism.analysis import interval
from benchmarks.what_ranks_miss.data import write_images
from benchmarks.what_ranks_miss.measures import accuracies, dense, layers, structure
from rankgap.data import ImageSet, load_data
from rankgap.run.config import TrainConfig, file_name
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore
from rankgap.run.scoring import score_run

HERE = Path(__file__).parent
Design = tuple[str, str | None]  # a method, and the filter on its target
SWEEP = (None, "power:-0.5", "power:-0.7", "power:-1", "power:-1.5", "power:-2")
DESIGNS: tuple[Design, ...] = (
    *(("simsiam", power) for power in SWEEP),
    ("byol", None),
    ("swav", None),
)
TAILED: tuple[Design, ...] = (
    ("simsiam", None),
    ("simsiam", "power:-0.5"),
    ("simsiam", "power:-1"),
    ("byol", None),
    ("swav", None),
)
LAYERED: tuple[Design, ...] = (("simsiam", "power:-0.5"), ("byol", None), ("swav", None))
LONG: Design = ("simsiam", "power:-0.5")
FACTOR = 100.0  # the largest class over the smallest, in the long tail
SCORES = ("RankMe", "effective rank", "alpha-ReQ", "LiDAR", "uniformity", "log LID", "DSE", "between-image share")
Measured = dict[str, Any]


class Work:
    """What is trained on, and how much.

    Args:
        data: the whole set, by its name on the Hub or the folder of its Parquet files.
        out: folder of the images and of the runs.
        images: training images of a run.
        epochs: of the short runs.
        long_epochs: of the long run, which keeps ten checkpoints.
    """

    def __init__(self, data: str, out: Path, images: int, epochs: int, long_epochs: int) -> None:
        self.out, self.epochs, self.long_epochs = out, epochs, long_epochs
        found = datasets.load_dataset(data)
        self.balanced = write_images(found, out / "images-balanced", images, 1.0, seed=0)
        self.tailed = write_images(found, out / "images-tailed", images, FACTOR, seed=0)
        self.bank, test = load_data(self.balanced)
        assert isinstance(test, ImageSet)
        self.test = test

    def config(
        self, method: str, target: str | None, data: str, seed: int, epochs: int, **more: Any
    ) -> TrainConfig:
        """A run's configuration; its folder's name says all of it."""
        config = TrainConfig(
            method=method,
            target=target,
            data=data,
            epochs=epochs,
            backbone="resnet_tiny",
            seed=seed,
            threads=1,
            protocol=(),
            **more,
        )
        kind = "tailed" if data == self.tailed else "balanced"
        name = file_name(f"{config.title}-{kind}-{epochs}-epochs-seed{seed}")
        return TrainConfig(**{f: getattr(config, f) for f in config.__slots__} | {"out": str(self.out / name)})


def measured(config: TrainConfig, name: str, measure: Callable[[RunFolder], Any]) -> Any:
    """Train a run if it has no results, measure something of it, and keep that in its folder."""
    run_one(config)
    folder, kept = RunFolder(config.path), config.path / f"measured-{name}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(measure(folder)))
    return json.loads(kept.read_text())


def last_scores(folder: RunFolder) -> dict[str, float]:
    """The label-free scores of a run's last checkpoint."""
    found = score_run(folder, images=2048, repeats=2)
    return {name: rated.value for name, rated in found.rated["last"].items()}


def correlation(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(x, y).statistic)


def short(work: Work, method: str, target: str | None, data: str, seed: int) -> Measured:
    """The scores and accuracies of one short run."""

    def measure(folder: RunFolder) -> Measured:
        return last_scores(folder) | accuracies(
            (plan := restore(folder.path)).model.encoder(), work.bank, work.test, plan
        )

    config = work.config(method, target, data, seed, work.epochs)
    found: Measured = measured(config, "scores", measure)
    results = RunFolder(config.path).results()
    alarms = sorted({alarm["kind"] for alarm in results["alarms"]})
    about = {"design": config.title, "seed": seed, "tailed": data == work.tailed, "alarms": alarms}
    return about | {"seconds": results["seconds"]} | found


def stages(work: Work, method: str, target: str | None, seed: int) -> list[Measured]:
    """The layers of one short run."""
    config = work.config(method, target, work.balanced, seed, work.epochs)
    found = measured(config, "layers", lambda folder: layers(restore(folder.path), work.bank, work.test))
    return [{"design": config.title, "seed": seed} | each for each in found]


def checkpoints(work: Work, seed: int) -> list[Measured]:
    """The scores, accuracies and dense accuracies of a long run's checkpoints."""

    def measure(folder: RunFolder) -> list[Measured]:
        scores = score_run(folder, images=2048, repeats=2)
        found = []
        for path in folder.checkpoints():
            if path.stem == "last":  # it is also the last epoch's
                continue
            plan = restore(folder.path, checkpoint=path)
            row: Measured = {"epoch": int(path.stem.removeprefix("epoch-"))}
            row |= {name: rated.value for name, rated in scores.rated[path.stem].items()}
            row |= structure(plan, work.bank.sample(256)) | dense(plan, work.bank, work.test)
            found.append(row | accuracies(plan.model.encoder(), work.bank, work.test, plan))
        return found

    every = max(work.long_epochs // 10, 1)
    config = work.config(*LONG, work.balanced, seed, work.long_epochs, keep_every=every)
    return [{"seed": seed} | each for each in measured(config, "checkpoints", measure)]


def weighted_dse(rows: list[Measured]) -> list[float]:
    """DSE with the weight that makes both terms' standard deviations over these checkpoints equal."""
    separability, dimension = (np.array([row[name] for row in rows]) for name in ("separability", "dimension"))
    values: list[float] = (separability + separability.std() / dimension.std() * dimension).tolist()
    return values


def cells(*values: str | int | float) -> str:
    """A row of a Markdown table; numbers have three digits, and what needs other ones comes as text."""
    return "| " + " | ".join(v if isinstance(v, str) else f"{v:.3g}" for v in values) + " |\n"


def head(*names: str) -> str:
    """The head of a Markdown table whose columns but the first hold numbers."""
    return cells(*names) + "|---|" + "--:|" * (len(names) - 1) + "\n"


def percent(value: float) -> str:
    """An accuracy for a table."""
    return f"{100 * value:.1f}"


def mean(rows: list[Measured], name: str) -> float:
    """The mean of something over rows."""
    return float(np.mean([row[name] for row in rows]))


def of_designs(rows: list[Measured]) -> str:
    """A table of designs, mean over seeds, and the correlations of each score with the accuracies."""
    lines = head("design", "seeds", *SCORES, "kNN %", "linear %", "alarms")
    for design in dict.fromkeys(row["design"] for row in rows):
        own = [row for row in rows if row["design"] == design]
        values = [mean(own, name) for name in SCORES]
        alarms = ", ".join(sorted({kind for row in own for kind in row["alarms"]})) or "-"
        worth = (percent(mean(own, name)) for name in ("knn", "linear"))
        lines += cells(design, str(len(own)), *values, *worth, alarms)
    return lines + "\n" + correlations(rows, SCORES, ("knn", "linear"))


def goodness(row: Measured, score: str) -> float:
    """A score's value, higher is better: alpha-ReQ's distance from 1 and uniformity count with a minus."""
    value: float = row[score]
    return {"alpha-ReQ": -abs(value - 1), "uniformity": -value}.get(score, value)


def of_the_tail(tailed: list[Measured], balanced: list[Measured]) -> str:
    """What the long tail changes, design by design and seed by seed: mean and Student's 95% interval."""
    names = (*SCORES, "knn", "linear")
    twins = {(row["design"], row["seed"]): row for row in balanced}
    changes = [{name: row[name] - twins[row["design"], row["seed"]][name] for name in names} for row in tailed]
    found = {name: interval([change[name] for change in changes]) for name in names}
    scale = {"knn": (100.0, ".1f"), "linear": (100.0, ".1f")}
    values = (
        f"{factor * mean:+{form}} ± {factor * half:{form}}"
        for (mean, half), (factor, form) in ((found[name], scale.get(name, (1.0, ".2f"))) for name in names)
    )
    return head(f"over {len(changes)} pairs", *SCORES, "kNN %", "linear %") + cells(
        "long tail - balanced", *values
    )


def correlations(rows: list[Measured], scores: tuple[str, ...], worth: tuple[str, ...]) -> str:
    """Spearman's correlations of scores with accuracies over rows."""
    lines = head(f"Spearman over {len(rows)}", *scores)
    for name in worth:
        values = [
            correlation([goodness(row, score) for row in rows], [row[name] for row in rows]) for score in scores
        ]
        lines += cells(name, *(f"{value:+.2f}" for value in values))
    return lines


def zoo() -> str:
    """The recorded runs of the mini benchmark by the RankMe of their features, and the correlations."""
    named = {"rankme_features": "RankMe", "erank_features": "effective rank", "knn": "knn", "linear": "linear"}
    rows, _ = recorded()
    runs = {row: [{to: run.results[of] for of, to in named.items()} for run in each] for row, each in rows.items()}
    text = head("design", "RankMe", "effective rank", "kNN %", "linear %")
    for row, each in sorted(runs.items(), key=lambda item: -mean(item[1], "RankMe")):
        ranks = (mean(each, name) for name in ("RankMe", "effective rank"))
        text += cells(row, *ranks, percent(mean(each, "knn")), percent(mean(each, "linear")))
    every = [run for each in runs.values() for run in each]
    return text + "\n" + correlations(every, ("RankMe", "effective rank"), ("knn", "linear"))


def report(found: Measured, settings: str) -> str:
    """The tables."""
    designs, tailed = found["designs"], found["tailed"]
    both = [row for row in designs if row["design"] in {each["design"] for each in tailed}]
    minutes = sum(row["seconds"] for row in designs + tailed) / 60
    text = f"Machine: {machine()}, one thread, other work beside it. {settings}"
    text += f" The {len(designs + tailed)} short runs trained for {minutes:.0f} minutes in all.\n\n"
    text += f"## The designs of cifar10_mini (10,000 images, 10 epochs)\n\n{zoo()}\n"
    text += f"## Designs, balanced classes\n\n{of_designs(designs)}\n"
    text += f"## Designs, a long tail of classes\n\n{of_designs(tailed)}\n"
    text += f"The same runs with balanced classes:\n\n{correlations(both, SCORES, ('knn', 'linear'))}\n"
    text += f"{of_the_tail(tailed, both)}\n"
    text += "## Layers\n\n" + head("design", "stage", "RankMe", "effective rank", "log LID", "kNN %", "linear %")
    for design in dict.fromkeys(row["design"] for row in found["layers"]):
        for stage in range(1, 5):
            own = [row for row in found["layers"] if (row["design"], row["stage"]) == (design, stage)]
            ranks = [mean(own, name) for name in ("rankme", "erank", "log_lid")]
            text += cells(design, str(stage), *ranks, percent(mean(own, "knn")), percent(mean(own, "linear")))
    text += "\n## A long run\n\n"
    names = (
        "RankMe",
        "LiDAR",
        "alpha-ReQ",
        "log LID",
        "DSE",
        "weighted DSE",
        "between-image share",
        "position share",
    )
    for seed in dict.fromkeys(row["seed"] for row in found["checkpoints"]):
        own = [row for row in found["checkpoints"] if row["seed"] == seed]
        own = [row | {"weighted DSE": value} for row, value in zip(own, weighted_dse(own), strict=True)]
        text += f"Seed {seed}:\n\n" + head(
            "epoch", *names, "kNN %", "linear %", "place accuracy %", "place mIoU %"
        )
        for row in own:
            worth = (percent(row[name]) for name in ("knn", "linear", "token_accuracy", "miou"))
            text += cells(str(row["epoch"]), *(row[name] for name in names), *worth)
        text += "\n" + correlations(own, names, ("knn", "linear", "token_accuracy", "miou")) + "\n"
    return text


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as hf:DIR_OR_NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/what_ranks_miss"), help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0,1", help="joined by commas (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5_000, help="of a run (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of the short runs (default: %(default)s)")
    parser.add_argument(
        "--long-epochs", type=int, default=30, help="of the long run, with the first seed (default: %(default)s)"
    )
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    work = Work(given.data.removeprefix("hf:"), given.out, given.images, given.epochs, given.long_epochs)
    found: Measured = {"checkpoints": checkpoints(work, seeds[0]), "designs": [], "tailed": [], "layers": []}
    for seed in seeds:
        designs = DESIGNS if seed == seeds[0] else TAILED
        found["designs"] += [short(work, *each, work.balanced, seed) for each in designs]
        found["tailed"] += [short(work, *each, work.tailed, seed) for each in TAILED]
        found["layers"] += [row for each in LAYERED for row in stages(work, *each, seed)]
    settings = (
        f"{given.images:,} images, {given.epochs} epochs (the long run: {given.long_epochs}), batch 256, "
        f"`resnet_tiny`; the long run and designs with one seed have seed {seeds[0]}, the others {given.seeds}."
    )
    (HERE / "results.json").write_text(json.dumps(found) + "\n")
    (HERE / "README.md").write_text(f"{(HERE / 'ABOUT.md').read_text()}\n{report(found, settings)}")


if __name__ == "__main__":
    main()
