"""The runs of the mini benchmark, one after the other or several at a time.

They are a module of their own because a spawned worker does not import its parent's `__main__`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankgap.model.schedule import Clock
from rankgap.run.config import TrainConfig, file_name
from rankgap.run.feed import EpochBatches
from rankgap.run.folder import RunFolder
from rankgap.run.plan import evaluate_model, prepare, restore
from rankgap.run.trainer import train
from rankgap.show.figures import ResultRow
from rankgap.show.progress import Progress
from rankgap.spectra.pair import PairSpectrum
from rankgap.spectra.streaming import PairSpectra

DESIGNS: tuple[tuple[str, str | None, str | None], ...] = (
    ("siamese", None, None),
    ("symsimsiam", None, None),
    ("simsiam", None, None),
    ("byol", None, None),
    ("swav", None, None),
    ("dino", None, None),
    ("directpred", None, None),
    ("directset", None, None),
    ("directcopy", None, None),
    ("isoloss", None, None),
    ("isoloss_l2", None, None),
    ("simsiam", "power:0.3", None),
    ("simsiam", "power:0.5", None),
    ("simsiam", "power:1", None),
    ("simsiam", "power:2", None),
    ("simsiam", "log1p", None),
    ("simsiam", "learned", None),
    ("simsiam", None, "power:-0.3"),
    ("simsiam", None, "power:-0.5"),
    ("simsiam", None, "power:-0.7"),
    ("simsiam", None, "power:-1"),
    ("simsiam", None, "auto"),
)
BASELINE = "simsiam"
RANK_EVERY = 10  # steps between two readings


@dataclass(frozen=True)
class Finished:
    """What one run left behind."""

    title: str
    seed: int
    results: dict[str, Any]
    metrics: dict[str, list[float]]

    def after_first_epoch(self) -> np.ndarray:
        """Rank differences at every reading after the first epoch."""
        epoch, online, target = (np.array(self.metrics[k]) for k in ("epoch", "erank_online", "erank_target"))
        difference: np.ndarray = (target - online)[epoch >= 1]
        return difference


def mini_config(
    method: str,
    online: str | None,
    target: str | None,
    *,
    data: str,
    seed: int,
    out: Path,
    limit: int = 10_000,
    epochs: int = 10,
) -> TrainConfig:
    """A run of the benchmark, in its folder below `out`."""
    config = TrainConfig(
        method=method,
        online=online,
        target=target,
        data=data,
        limit=limit,
        epochs=epochs,
        backbone="resnet_tiny",
        rank_every=RANK_EVERY,
        seed=seed,
    )
    config.out = str(out / file_name(f"{config.title}-seed{seed}"))
    return config


def run_one(config: TrainConfig) -> Finished:
    """Train a run, resume it, or read it."""
    folder, worker = config.folder, multiprocessing.parent_process() is not None
    if not folder.results():
        config.resume = folder.checkpoint.is_file()
        config.overwrite = not config.resume
        # Several bars would write over each other in one terminal.
        train(config, callbacks=[] if worker else [Progress(f"{config.title} seed {config.seed}")])
    return Finished(config.title, config.seed, folder.results(), folder.metrics())


def run_all(
    configs: list[TrainConfig], workers: int, run: Callable[[TrainConfig], Finished] = run_one
) -> Iterator[Finished]:
    """Every run, in order; `workers` processes share them and the machine's cores."""
    if workers == 1:
        yield from map(run, configs)
        return
    threads = max((os.cpu_count() or 1) // workers, 1)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for done in pool.map(run, configs):
            print(f"{done.title} seed {done.seed}: kNN {100 * done.results['knn']:.1f} %", flush=True)
            yield done


def result_row(title: str, runs: list[Finished]) -> ResultRow:
    """A row of the figure."""
    keys = ("knn", "linear", "erank_online", "erank_target")
    return ResultRow(title, *([run.results[key] for run in runs] for key in keys))


def untrained_scores(config: TrainConfig) -> dict[str, Any]:
    """What the encoder scores before it has learned anything: the floor of the table."""
    file = Path(f"{config.folder.path}-untrained.json")
    if not file.is_file():
        experiment = prepare(config)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(evaluate_model(experiment, experiment.model())))
    scores: dict[str, Any] = json.loads(file.read_text())
    return scores


@torch.no_grad()
def pooled(folder: RunFolder) -> PairSpectrum:
    """Spectra, alignment and measured filter of a trained model over all training images, in training mode.

    Online view i is paired with target view i, so that the filter is that of the map and not of the views.
    """
    experiment, model = restore(folder.path)
    work, views = experiment.work, experiment.views()
    model.train()
    model.prepare(Clock(step=work.steps - 1, steps=work.steps, steps_per_epoch=work.steps_per_epoch))
    generator = torch.Generator().manual_seed(0)
    pair: PairSpectra | None = None
    batches = EpochBatches(experiment.train, work, seed=0, step=0)
    for index in range(len(batches)):
        batch = batches[index]
        outputs = model(views(batch.images, batch.sizes, generator))
        pair = pair or PairSpectra(outputs.online.shape[-1])
        pair.update(outputs.online.flatten(0, 1), outputs.target.flatten(0, 1))
    assert pair is not None
    found: PairSpectrum = pair.compute()
    return found
