"""The whole story on scikit-learn's digits: seven methods, their ranks, one picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rankgap.console import Progress
from rankgap.experiment import TrainConfig, train
from rankgap.report.figures import RankTrace, ranks_figure
from rankgap.runs import RunFolder

DESIGNS = (
    {"method": "symsimsiam"},
    {"method": "simsiam"},
    {"method": "byol"},
    {"method": "swav"},
    {"method": "dino"},
    {"method": "simsiam", "online": "power:1"},
    {"method": "simsiam", "target": "power:-0.5"},
)


def trace(folder: RunFolder, name: str) -> RankTrace:
    """The ranks of a run along its training, for a figure."""
    metrics = folder.metrics()
    return RankTrace(
        name, metrics["epoch"], metrics["erank_online"], metrics["erank_target"], folder.results().get("knn")
    )


def run_demo(out: Path, seed: int, *, epochs: int = 40) -> tuple[dict[str, dict[str, Any]], Path]:
    """Train the seven designs and draw their ranks.

    Args:
        out: where the run folders and the picture go.
        seed: of all runs.
        epochs: of each run.

    Returns:
        The results of each run by its title, and the picture's path.
    """
    results: dict[str, dict[str, Any]] = {}
    traces: list[RankTrace] = []
    for design in DESIGNS:
        config = TrainConfig(data="digits", batch_size=128, epochs=epochs, seed=seed, **design)
        config = dataclasses.replace(config, out=str(out / config.title.replace(" ", "-").replace(":", "")))
        config.overwrite = True
        results[config.title] = train(config, callbacks=[Progress(config.title)])
        traces.append(trace(config.folder, config.title))
    picture = out / "ranks.png"
    ranks_figure(traces, picture)
    return results, picture
