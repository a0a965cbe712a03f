"""A row means the same on one process and on several: two gloo processes against one with the joint batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from rankgap.model.assignments import CentredAssignmentOptions, SinkhornOptions
from rankgap.model.branches import DualBranch, Outputs, TeacherOptions
from rankgap.model.heads import Heads
from rankgap.model.joint_norm import join_norms
from rankgap.model.methods import METHODS
from rankgap.model.mlp import ProjectorOptions
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.model.schedule import Clock
from rankgap.run.build import build
from rankgap.run.optimizer import OptimizerOptions, build_optimizer, ready_gradients
from rankgap.spectra.processes import gather_rows, joint_mean
from tests.processes import WORLD, needs_distributed, run_on_processes
from tests.training import INPUTS, tiny_encoder

BATCH, STEPS, STEPS_PER_EPOCH = 32, 5, 2
HEADS = Heads(
    projector=ProjectorOptions(widths=(24, 8), output_norm="batch"),
    prototypes=PrototypeOptions(count=12, freeze_epochs=1),
    teacher=TeacherOptions(momentum=0.9),
    online={"predictor": PredictorOptions(widths=(8,))},
    target={
        "sinkhorn": SinkhornOptions(queue=40),  # no multiple of the batch; in use from the third step on
        "centred_assignment": CentredAssignmentOptions(warmup_epochs=1),
    },
)
DESIGNS: list[tuple[str, str | None, str | None]] = [
    *((method, None, None) for method in METHODS),
    ("byol", "learned", None),
    ("simsiam", None, "power:-0.5"),
    ("swav", "log1p", None),
]
Step = dict[str, Tensor]


def model_of(design: tuple[str, str | None, str | None]) -> DualBranch:
    torch.manual_seed(0)
    method, online, target = design
    return build(method, backbone=tiny_encoder(), online=online, target=target, heads=HEADS)


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, INPUTS, generator=generator)
        yield images + 0.5 * torch.randn(2, BATCH, INPUTS, generator=generator)


def train(model: DualBranch, forward: Callable[[Tensor], Outputs], rows: slice) -> list[Step]:
    """A few steps on some rows of each batch, and all that the processes should agree on, of each step."""
    options = OptimizerOptions(lr=0.05, weight_decay=1e-2, decay_all=True)
    optimizer = build_optimizer(model, options)
    steps = []
    for number, views in enumerate(batches()):
        clock = Clock(step=number, steps=STEPS, steps_per_epoch=STEPS_PER_EPOCH)
        model.prepare(clock)
        out = forward(views[:, rows])
        optimizer.zero_grad()
        out.loss.backward()
        ready_gradients(optimizer, model, options)
        optimizer.step()
        model.update_teacher(clock)
        found = {"loss": joint_mean(out.loss.detach()), "P": gather_rows(out.online), "T": gather_rows(out.target)}
        found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        found |= {f"parameter {n}": p.detach() for n, p in model.named_parameters()}
        found |= {f"buffer {n}": b for n, b in model.named_buffers()}
        steps.append({name: value.clone() for name, value in found.items()})
    return steps


def on_process(process: int, folder: Path) -> None:
    for number, design in enumerate(DESIGNS):
        model = model_of(design)
        join_norms(model, cuda=False)
        share = BATCH // WORLD
        steps = train(
            model,
            DistributedDataParallel(model, broadcast_buffers=False),
            slice(process * share, (process + 1) * share),
        )
        torch.save(steps, folder / f"{number}-{process}.pt")


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    run_on_processes(functools.partial(on_process, folder=folder), folder)
    return folder


@needs_distributed
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: "-".join(filter(None, design)))
def test_two_processes_are_one_with_the_joint_batch(
    design: tuple[str, str | None, str | None], distributed: Path
) -> None:
    model = model_of(design)
    wanted = train(model, model, slice(None))
    for process in range(WORLD):
        found = torch.load(distributed / f"{DESIGNS.index(design)}-{process}.pt")
        for step, (ours, joint) in enumerate(zip(found, wanted, strict=True)):
            assert ours.keys() == joint.keys()
            for name, value in joint.items():
                close = 1e-6 if name == "loss" else 1e-5
                try:
                    assert_close(ours[name], value, rtol=close, atol=close)
                except AssertionError as error:
                    pytest.fail(f"process {process}, step {step}, {name}: {error}")
