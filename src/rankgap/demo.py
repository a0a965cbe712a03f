"""The whole story on scikit-learn's digits: seven methods, their ranks, one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankgap.errors import UserError
from rankgap.run.config import TrainConfig, file_name
from rankgap.run.folder import RunFolder
from rankgap.run.reader import read
from rankgap.run.trainer import train
from rankgap.show.columns import KNN
from rankgap.show.figures import RankTrace, ranks_figure
from rankgap.show.progress import Progress
from rankgap.watch.verdict import Verdict

CONTROL = "siamese"
DESIGNS: tuple[tuple[str, str | None, str | None], ...] = (
    (CONTROL, None, None),
    ("simsiam", None, None),
    ("byol", None, None),
    ("swav", None, None),
    ("dino", None, None),
    ("simsiam", "power:1", None),
    ("simsiam", None, "power:-0.5"),
)  # method, online, target


def trace(folder: RunFolder, name: str) -> RankTrace:
    """The ranks of a run during training, for a figure."""
    metrics = folder.metrics()
    return RankTrace(
        name, metrics["epoch"], metrics["erank_online"], metrics["erank_target"], folder.results().get("knn")
    )


def story(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What the runs show, in words, computed from the results so that it agrees with the table."""
    control, others = results[CONTROL], [found for title, found in results.items() if title != CONTROL]
    ranks = [found["verdict"]["outputs"]["rank"] or 0.0 for found in others]
    scores, difference = [KNN.scaled(found) for found in others], [found["rank_difference"] for found in others]
    higher = sum(each > 0 for each in difference)
    own = read(Verdict, control["verdict"], CONTROL)
    return (
        f"The effective rank is the number of dimensions that the outputs use: 1 if all images give the same "
        f"output, at most {own.outputs.of} here. In {CONTROL}, nothing keeps the branches apart: its outputs use "
        f"{own.outputs}, and its kNN accuracy is {KNN.cell(control)}%. In {higher} of the {len(others)} others, "
        f"the target ends with a higher rank than the online branch. The outputs of these {len(others)} runs use "
        f"{min(ranks):.1f} to {max(ranks):.1f} dimensions, and their kNN accuracy is {min(scores):.1f} to "
        f"{max(scores):.1f}%."
    )


def run_demo(out: Path, seed: int, *, epochs: int) -> tuple[dict[str, dict[str, Any]], Path]:
    """Train the seven designs and draw their ranks.

    Args:
        out: folder for the run folders and the picture.
        seed: seed of all runs.
        epochs: epochs of each run.

    Returns:
        The results of each run by title, and the picture's path.

    Raises:
        UserError: `out` is a run's own folder.
    """
    if RunFolder(out).config_file.is_file():
        raise UserError(f"{out} is the folder of a run: choose another --out for the demo's seven")
    results: dict[str, dict[str, Any]] = {}
    traces: list[RankTrace] = []
    for method, online, target in DESIGNS:
        config = TrainConfig(
            method=method,
            online=online,
            target=target,
            data="digits",
            batch_size=128,
            epochs=epochs,
            seed=seed,
            overwrite=True,
        )
        config = replace(config, out=str(out / file_name(config.title)))
        results[config.title] = train(config, callbacks=[Progress(config.title)])
        traces.append(trace(RunFolder(config.path), config.title))
    picture = out / "ranks.png"
    ranks_figure(traces, picture)
    return results, picture
