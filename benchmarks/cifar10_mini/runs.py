"""The runs of the mini benchmark, one after another or several at a time.

They have a module of their own because a spawned worker does not import its parent's `__main__`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankgap.evaluate.batches import views_of
from rankgap.model.methods import METHODS
from rankgap.run.config import TrainConfig, file_name
from rankgap.run.feed import EpochBatches
from rankgap.run.folder import RunFolder
from rankgap.run.plan import resolve
from rankgap.run.presets import adapt
from rankgap.run.reader import plain
from rankgap.run.recipes import load_recipe
from rankgap.run.restored import evaluate_plan, restore
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from rankgap.run.work import Work
from rankgap.show.columns import KNN
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
MULTICROP = ("swav", "dino")  # methods that are trained with local views too
LOCAL = {"size": 16, "scale": (0.2, 0.5), "target": False, "solarize_p": 0.0, "count": 4}
SHARE = 0.7  # of the epochs, in which local views take the time that the row without them takes
BASELINE = "simsiam"
RANK_EVERY = 10  # steps between two readings


@dataclass(frozen=True)
class Finished:
    """The results of one run."""

    title: str
    seed: int
    results: dict[str, Any]
    metrics: dict[str, list[float]]

    def after_first_epoch(self) -> np.ndarray:
        """The rank differences at all readings after the first epoch."""
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
    """The configuration of one run, whose folder lies below `out`."""
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
    return replace(config, out=str(out / file_name(f"{config.title}-seed{seed}")))


def multicrop(config: TrainConfig) -> TrainConfig:
    """The same run with local views, in fewer epochs, so that it takes the same time."""
    row, epochs = METHODS[config.method], max(round(SHARE * config.epochs), 1)
    work = Work(images=config.limit or 1, batch_size=config.batch_size, epochs=epochs, features=128)
    large = plain(adapt(load_recipe("cifar", row.body), row, work)[0].views)
    settings = {"views": [*large, large[0] | LOCAL]}
    return replace(config, epochs=epochs, settings=settings, out=f"{config.path}-multicrop")


def row_title(config: TrainConfig) -> str:
    """The row's name in the table."""
    return f"{config.title} multi-crop" if "views" in config.settings else config.title


def run_one(config: TrainConfig) -> Finished:
    """Train a run or resume it; if it is finished, read its results."""
    folder, worker = RunFolder(config.path), multiprocessing.parent_process() is not None
    if "seconds" not in folder.results():  # a run that has only scored its start is not finished
        config = resumed(folder.path, {}) if folder.checkpoint.is_file() else replace(config, overwrite=True)
        # In one terminal, several progress bars would overwrite each other.
        train(config, callbacks=[] if worker else [Progress(f"{row_title(config)} seed {config.seed}")])
    return Finished(row_title(config), config.seed, folder.results(), folder.metrics())


def run_all(
    configs: list[TrainConfig], workers: int, run: Callable[[TrainConfig], Finished] = run_one
) -> Iterator[Finished]:
    """All runs, in order; `workers` processes share them and the machine's cores."""
    if workers == 1:
        yield from map(run, configs)
        return
    threads = max((os.cpu_count() or 1) // workers, 1)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for done in pool.map(run, configs):
            print(f"{done.title} seed {done.seed}: kNN {KNN.cell(done.results)} %", flush=True)
            yield done


def result_row(title: str, runs: list[Finished]) -> ResultRow:
    """A row of the figure."""
    keys = ("knn", "linear", "erank_online", "erank_target")
    return ResultRow(title, *([run.results[key] for run in runs] for key in keys))


def untrained_scores(config: TrainConfig) -> dict[str, Any]:
    """The scores of the encoder before any training, which are the floor of the table."""
    file = Path(f"{config.path}-untrained.json")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(evaluate_plan(resolve(config))))
    scores: dict[str, Any] = json.loads(file.read_text())
    return scores


@torch.no_grad()
def pooled(folder: RunFolder) -> PairSpectrum:
    """The pair spectrum of a trained model over all training images, in training mode.

    Online view i is paired with target view i, so that the filter is that of the map and not of the views.
    """
    plan = restore(folder.path)
    model, work, views = plan.model, plan.work, plan.views()
    model.train()
    model.prepare(work.clock(work.steps - 1))
    generator = torch.Generator().manual_seed(0)
    pair: PairSpectra | None = None
    batches = EpochBatches(plan.train, work, seed=0, step=0)
    for index in range(len(batches)):
        batch = batches[index]
        outputs = model(views_of(views, batch, generator))
        pair = pair or PairSpectra(outputs.online.shape[-1])
        pair.update(outputs.online.flatten(0, 1), outputs.target.flatten(0, 1))
    assert pair is not None
    found: PairSpectrum = pair.compute()
    return found
