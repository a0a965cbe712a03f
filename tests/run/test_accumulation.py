"""One optimiser step for several batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rankgap.data import load_data
from rankgap.errors import InterruptedRunError, UserError
from rankgap.model.assignments import CentredAssignmentOptions
from rankgap.model.heads import Heads
from rankgap.model.mlp import ProjectorOptions
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.run.build import build
from rankgap.run.config import TrainConfig
from rankgap.run.feed import EpochBatches
from rankgap.run.folder import RunFolder
from rankgap.run.module import SelfSupervised
from rankgap.run.optimizer import OptimizerOptions
from rankgap.run.plan import resolve
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from rankgap.run.work import Work
from rankgap.views import ViewConfig, Views
from tests.run.test_training import fit
from tests.small_run import four_steps

STILL = ViewConfig(scale=(1, 1), ratio=(1, 1), flip=0, jitter_p=0, grey_p=0)
MIRRORED = ViewConfig(scale=(1, 1), ratio=(1, 1), flip=1, jitter_p=0, grey_p=0)


def module(method: str, work: Work, **options: Any) -> SelfSupervised:
    """A method without batch norm, on views that do not depend on a seed, in float64."""
    torch.manual_seed(0)
    heads = Heads(
        projector=ProjectorOptions(widths=(16, 8), norm=False, activation="gelu"),
        prototypes=PrototypeOptions(count=12),
        online={"predictor": PredictorOptions(widths=(8,))},
        target={"centred_assignment": CentredAssignmentOptions(momentum=1.0)},  # a centre that is held
    )
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU())
    model = build(method, backbone=encoder, heads=heads, channels=1, size=8)
    views = Views([STILL, MIRRORED], 8, [0.3], [0.4])
    return SelfSupervised(model, views, OptimizerOptions(lr=0.5, warmup_epochs=0), work, **options)


def test_a_step_of_two_batches_is_the_step_of_the_joint_batch_where_images_are_alone() -> None:
    whole = module("dino", Work(images=200, batch_size=64, epochs=2, features=16))
    halves = module("dino", Work(images=200, batch_size=32, accumulate=2, epochs=2, features=16), rank_every=1)
    fit(whole)
    fit(halves, accumulate_grad_batches=2)
    assert whole.step == halves.step == whole.work.steps == halves.work.steps == 6
    start = module("dino", whole.work).model
    for p, q, r in zip(whole.model.parameters(), halves.model.parameters(), start.parameters(), strict=True):
        assert_close(p, q, rtol=0, atol=1e-5)
        assert (p - r).abs().max() > 1e-3  # so that the comparison means something
    assert len(halves.monitor.history) == 6
    assert halves.last_reading["loss"] == pytest.approx(whole.last_reading["loss"], abs=1e-5)
    assert halves.last_reading["lr"] == whole.last_reading["lr"]
    assert halves.last_reading["full_rank"] == 12


def test_a_row_that_looks_at_a_batch_sees_each_batch_alone() -> None:
    whole = module("swav", Work(images=200, batch_size=64, epochs=1, features=16))
    halves = module("swav", Work(images=200, batch_size=32, accumulate=2, epochs=1, features=16))
    fit(whole)
    fit(halves, accumulate_grad_batches=2)
    pairs = zip(whole.model.parameters(), halves.model.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) > 1e-4


def test_batches_of_an_accumulated_step_are_those_of_the_joint_batch_and_have_views_of_their_own() -> None:
    images, _ = load_data("digits", limit=100)
    work = Work(images=100, batch_size=16, accumulate=2, epochs=2, features=16)
    parts, joint = (
        EpochBatches(images, each, seed=1, step=4)
        for each in (work, Work(images=100, batch_size=32, epochs=2, features=16))
    )
    assert len(parts) == 2 * len(joint) == 4
    assert torch.equal(torch.cat([parts.batches[0], parts.batches[1]]), joint.batches[0])
    random = SelfSupervised(
        module("dino", work).model, Views([ViewConfig()] * 2, 8, [0.3], [0.4]), OptimizerOptions(lr=0.1), work
    )
    seeds: list[int] = []
    random.views.register_forward_pre_hook(lambda _, given: seeds.append(given[2].initial_seed()))
    fit(random, accumulate_grad_batches=2)
    assert len(set(seeds)) == len(seeds) == 12


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("dino", "batch norm, centred_assignment and the readings still see 32 images at a time"),
        ("swav", "batch norm, sinkhorn and the readings"),
        ("symsimsiam", "batch norm, the centring and the readings"),
    ],
)
def test_what_still_sees_a_small_batch_is_said_once(method: str, says: str, tmp_path: Path) -> None:
    plan = resolve(TrainConfig(method=method, data="digits", batch_size=32, accumulate=4, out=str(tmp_path / "a")))
    [note] = [note for note in plan.notes if "4 batches" in note]
    assert says in note
    assert plan.work.steps_per_epoch == 1442 // 128
    assert not any("4 batches" in note for note in resolve(TrainConfig(method=method, data="digits")).notes)


def test_an_accumulated_run_is_resumed_exactly(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    whole, parts = (
        dataclasses.replace(four_steps(tmp_path / name, method="swav"), batch_size=16, accumulate=4)
        for name in ("whole", "parts")
    )
    train(whole)
    with pytest.raises(InterruptedRunError, match="step 3 of 4"):
        train(parts, callbacks=[Stop()])
    train(resumed(parts.path, {}))
    first, second = RunFolder(whole.path), RunFolder(parts.path)
    assert first.metrics() == second.metrics()
    states = [folder.load_checkpoint().model for folder in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0"),
        (
            {"accumulate": 20, "batch_size": 128},
            "fewer than 20 batches of 128: lower --batch-size or --accumulate",
        ),
    ],
)
def test_too_few_or_too_many_batches_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(TrainConfig(data="digits", **fields))
