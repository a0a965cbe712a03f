"""The training loop of the tests, and an encoder small enough for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rankgap.model.backbones import Encoder
from rankgap.model.branches import DualBranch, Outputs
from rankgap.model.schedule import Clock

INPUTS, FEATURES = 24, 32


def tiny_encoder() -> Encoder:
    """Images of `INPUTS` numbers (B, ...) -> features (B, `FEATURES`)."""
    layers = nn.Flatten(), nn.Linear(INPUTS, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU()
    return Encoder(nn.Sequential(*layers), FEATURES)


def sgd(model: DualBranch, lr: float, momentum: float = 0.0) -> torch.optim.SGD:
    """SGD for the trained parameters, which exclude a teacher's."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=momentum)


def descend(
    model: DualBranch, batches: Sequence[Tensor], optimizer: torch.optim.Optimizer, *, steps_per_epoch: int
) -> Iterator[Outputs]:
    """Train for one step per batch of views (V, B, ...), and yield the step's outputs after its update.

    Training is lazy: it ends where the caller leaves the loop.
    """
    for step, views in enumerate(batches):
        clock = Clock(step=step, steps=len(batches), steps_per_epoch=steps_per_epoch)
        model.prepare(clock)
        outputs: Outputs = model(views)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        model.update_teacher(clock)
        yield outputs
