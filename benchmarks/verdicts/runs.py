"""The runs in the table of verdicts, and the measurements of each encoder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.verdicts.cases import MADE, Bench, Case
from rankgap.data import ImageSet, load_data
from rankgap.errors import NonFiniteError
from rankgap.evaluate import evaluate
from rankgap.model.methods import METHODS
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.plan import Plan, resolve
from rankgap.run.restored import restore
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from rankgap.spectra.effective_rank import effective_rank
from rankgap.watch.doctor import Diagnosis
from rankgap.watch.verdict import Verdict

HELD_OUT = 1024  # test images whose outputs are ranked


@dataclass(frozen=True)
class Truth:
    """The quality of an encoder on the bench's images, measured with labels and on test images.

    Args:
        knn: accuracy of weighted kNN on the test images, in [0, 1].
        features: effective rank of the training images' features (uncentred correlation).
        outputs: effective rank of the target's outputs for views of test images (uncentred correlation).
    """

    knn: float
    features: float
    outputs: float


@dataclass(frozen=True)
class Judged:
    """A run, with its measurements, its verdict and its alarms.

    Args:
        title: the case.
        fault: whether the run has a deliberate fault.
        seed: its seed.
        steps: optimiser steps.
        truth: the measurements of its encoder.
        verdict: the verdict in `results.json`; None if training stopped at non-finite numbers.
        alarms: the alarms raised during training.
    """

    title: str
    fault: bool
    seed: int
    steps: int
    truth: Truth
    verdict: Verdict | None
    alarms: list[Diagnosis]


def truth_of(plan: Plan, bench: Bench) -> Truth:
    """Measure a plan's encoder on the bench's images, even if it was trained on others."""
    images, test = load_data(bench.data, limit=bench.limit, seed=plan.config.seed)
    assert test is not None
    for each in (images, test):  # normalised as during training
        each.mean, each.std = plan.train.mean, plan.train.std
    found = evaluate(plan.model.encoder("online"), images, {"test": test}, size=plan.size, protocol=("knn",))
    scores = cast(dict[str, float | None], found)
    return Truth(scores["knn"] or 0.0, scores["erank_features"] or 0.0, _outputs(plan, test))


@torch.no_grad()
def _outputs(plan: Plan, test: ImageSet) -> float:
    batch = test.sample(HELD_OUT)
    rows = batch.batch(range(len(batch)))
    model, views = plan.model, plan.views()
    model.train()
    model.prepare(plan.work.clock(plan.work.steps - 1))
    target = model(views(rows.images, rows.sizes, torch.Generator().manual_seed(0))).target[1]
    return float(effective_rank(target)) if target.isfinite().all() and target.any() else math.nan


def run_one(case: Case, bench: Bench, seed: int, out: Path, images: ImageSet) -> Judged:
    """Train a case and measure its encoder, or read the results of an earlier call."""
    config = case.config(bench, out, seed=seed)
    folder = RunFolder(config.path)
    kept = Path(f"{config.path}-truth.json")
    if not kept.is_file():
        case.prepare(config, images)
        METHODS.update(MADE)
        try:
            train(resumed(folder.path, {}) if folder.checkpoint.is_file() else replace(config, overwrite=True))
            truth = truth_of(restore(config.path), bench)
        except NonFiniteError:
            truth = Truth(0.0, 0.0, math.nan)
        finally:
            for name in MADE:
                del METHODS[name]
        kept.write_text(json.dumps(asdict(truth)))
    return Judged(
        case.title,
        case.fault,
        seed,
        folder.saved().work.steps,
        Truth(**json.loads(kept.read_text())),
        folder.verdict(),
        [Diagnosis(**alarm) for alarm in folder.results().get("alarms", [])],
    )


def untrained(bench: Bench, seed: int, out: Path) -> Truth:
    """The measurements of the untrained encoder of a seed."""
    kept = out / bench.name / f"untrained-seed{seed}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        config: TrainConfig = bench.config(kept.with_suffix(""), seed=seed, method="simsiam")
        kept.write_text(json.dumps(asdict(truth_of(resolve(config), bench))))
    found: dict[str, Any] = json.loads(kept.read_text())
    return Truth(**found)
