"""Prototypes: learned unit vectors that embeddings are assigned to, as in SwAV and DINO.

Shapes: D embedding width, K prototypes, `...` leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.model.schedule import Clock, Scheduled, is_frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class PrototypeOptions:
    """The number of prototypes, and when they are trained.

    Args:
        count: number of prototypes K.
        freeze_epochs: epochs at the start in which they are frozen.
    """

    count: int = 0
    freeze_epochs: float = 0


class Prototypes(Scheduled):
    """Cosine similarities of embeddings with K learned unit vectors (SwAV section 3.1; DINO's last layer).

    The weight is normalised in the forward pass (DINO's weight norm with its gain fixed at 1), where SwAV's
    authors project it onto the sphere after each step: the same function, with the gradient's radial part
    removed.

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
        """(..., D) -> cosines (..., K), float32: temperatures magnify what bfloat16 would round away."""
        # A zero gradient rather than none: distributed training expects one for every parameter.
        weight = self.weight.detach() + 0 * self.weight if self.frozen else self.weight
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(z.float(), dim=-1), F.normalize(weight, dim=1))
