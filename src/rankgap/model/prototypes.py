"""Prototypes: learned unit vectors that embeddings are assigned to, as in SwAV and DINO.

Shapes: D embedding width, K prototypes, `...` leading dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.errors import check_within
from rankgap.model.schedule import Clock, Scheduled, is_frozen
from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.processes import is_distributed


@dataclass(frozen=True, kw_only=True, slots=True)
class PrototypeOptions:
    """The number of prototypes, and when they are trained.

    Args:
        count: number of prototypes K.
        freeze_epochs: epochs at the start in which they are frozen.
    """

    count: int = 0
    freeze_epochs: float = 0

    def __post_init__(self) -> None:
        check_within(self, count=(0, 2**24), freeze_epochs=(0, math.inf))


class Prototypes(Scheduled):
    """Cosine similarities of embeddings with K learned unit vectors (SwAV section 3.1; DINO's last layer).

    The weight is normalised in the forward pass (DINO's weight norm with its gain fixed at 1), where SwAV's
    authors project it onto the sphere after each step: the same function, with the gradient's radial part
    removed.

    Frozen prototypes have no gradient, so that an optimiser leaves them alone: neither weight decay nor momentum
    moves them (SwAV, DINO and solo-learn set the gradient to None too). Under `torch.distributed`, where DDP
    expects a gradient of every parameter, it is zero: call `drop_frozen_gradients` before the optimiser's step.

    Args:
        dim: embedding width D.
        options: their number and schedule.
    """

    def __init__(self, dim: int, options: PrototypeOptions) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(options.count, dim), dim=1))
        self.freeze_epochs = options.freeze_epochs
        self.frozen = options.freeze_epochs > 0

    def prepare(self, clock: Clock) -> None:
        """Freeze the prototypes during the first epochs."""
        self.frozen = is_frozen(clock, self.freeze_epochs)

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> cosines (..., K), float32 or better: temperatures magnify what bfloat16 rounds away."""
        weight: Tensor = self.weight
        if self.frozen:  # distributed training expects a gradient for every parameter, so it gets a zero one
            weight = weight.detach() + 0 * weight if is_distributed() else weight.detach()
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(at_least_float32(z), dim=-1), F.normalize(weight, dim=1))


def drop_frozen_gradients(model: nn.Module) -> None:
    """Set the gradients of a model's frozen prototypes to None; call it before the optimiser's step."""
    for module in model.modules():
        if isinstance(module, Prototypes) and module.frozen:
            module.weight.grad = None
