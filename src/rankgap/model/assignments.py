"""Assignment to prototypes: SwAV's and DINO's online map, and their target maps.

Shapes: V views that the map's branch sees, B images per view, N rows of a view over all processes, D embedding
width, K prototypes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankgap.errors import check_within
from rankgap.model.alignments import Assigned
from rankgap.model.maps import Place, register_map
from rankgap.model.prototypes import Prototypes
from rankgap.model.schedule import Clock, Scheduled, is_frozen, ramp
from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.processes import gather_rows, own_share, world_max, world_size, world_sum

_SHARP = (1e-6, 1e6)  # temperatures


def _prototypes(place: Place) -> Prototypes:
    assert place.prototypes is not None, "a map that assigns is only built on a branch with prototypes"
    return place.prototypes


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignmentOptions:
    """How sharp the online assignment is.

    Args:
        temperature: temperature t; smaller is sharper.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_within(self, temperature=_SHARP)


@register_map("assignment", "online", options=AssignmentOptions(), assigns=True, per_image=True)
class Assignment(nn.Module):
    """Soft assignment to prototypes, softmax(scores / t): the online map of SwAV and DINO.

    Args:
        place: where the map stands; the target map shares its prototypes, or has their average.
        options: the temperature.
    """

    def __init__(self, place: Place, options: AssignmentOptions) -> None:
        super().__init__()
        self.prototypes = _prototypes(place)
        self.temperature = options.temperature

    def forward(self, z: Tensor) -> Assigned:
        """(V, B, D) -> probabilities (V, B, K) and their logarithm, in float32 or better."""
        logits = self.prototypes(z) / self.temperature
        return Assigned(logits.softmax(dim=-1), logits.log_softmax(dim=-1))


def sinkhorn(scores: Tensor, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes that use every prototype equally: Sinkhorn-Knopp on exp(scores / eps) (SwAV, eq. 3 to 5).

    Args:
        scores: (..., N, K); the N rows of a view are balanced together, over all processes.
        eps: entropy of the transport; smaller gives harder codes.
        iterations: row and column normalisations; the last one makes the rows sum to 1.

    Returns:
        (..., N, K) in float32 or better, each row a distribution; column sums tend to N / K.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logits = at_least_float32(scores) / eps
        # One maximum for all processes: another in each would weigh their rows differently.
        codes = (logits - world_max(logits.amax(dim=(-2, -1), keepdim=True))).exp()
        for _ in range(iterations):
            codes = codes / world_sum(codes.sum(dim=-2, keepdim=True))  # prototypes share the mass
            codes = codes / codes.sum(dim=-1, keepdim=True)  # each image has mass 1
        return codes


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkhornOptions:
    """The options of SwAV's transport and queue.

    Args:
        eps: entropy of the transport; smaller gives harder codes.
        iterations: Sinkhorn iterations.
        queue: length of each view's queue in embeddings, whatever the number of processes; 0 for no queue.
        queue_epochs: epochs before the queue is used; it is never used before it is full.
    """

    eps: float = 0.05
    iterations: int = 3
    queue: int = 0
    queue_epochs: float = 0

    def __post_init__(self) -> None:
        check_within(self, eps=_SHARP, iterations=(1, 1000), queue=(0, 2**24), queue_epochs=(0, math.inf))


@register_map("sinkhorn", "target", options=SinkhornOptions(), assigns=True)
class SinkhornCodes(Scheduled):
    """SwAV's target map: balanced codes of a batch, helped by a queue of earlier embeddings.

    Each view has its own queue, because two views of an image must not compete. A queue holds the newest
    embeddings of all processes and is the same in each, so that the checkpoint of one process is whole. Each
    process balances its batch together with its share of the queue, so that every embedding counts once, as in
    solo-learn.

    Args:
        place: where the map stands; the prototypes are the online branch's own.
        options: transport and queue.
    """

    queue: Tensor

    def __init__(self, place: Place, options: SinkhornOptions) -> None:
        super().__init__()
        self.prototypes = _prototypes(place)
        self.eps, self.iterations, self.queue_epochs = options.eps, options.iterations, options.queue_epochs
        self.register_buffer("queue", torch.zeros(place.views, options.queue, place.dim))
        self.steps, self.due = 0, False

    def prepare(self, clock: Clock) -> None:
        """Note the step: the queue is used from `queue_epochs` on, once it is full."""
        self.steps, self.due = clock.step, not is_frozen(clock, self.queue_epochs)

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> codes (V, B, K), in float32 or better."""
        batch, length = z.shape[1], self.queue.shape[1]  # of this process, of all
        if length == 0:
            return sinkhorn(self.prototypes(z), eps=self.eps, iterations=self.iterations)
        full = self.steps * batch * world_size() >= length
        rows = torch.cat([z, own_share(self.queue).to(z)], dim=1) if self.due and full else z
        codes = sinkhorn(self.prototypes(rows), eps=self.eps, iterations=self.iterations)[:, :batch]
        if self.training:
            newest = torch.cat([gather_rows(z).to(self.queue), self.queue], dim=1)
            self.queue.copy_(newest[:, :length])
        return codes


@dataclass(frozen=True, kw_only=True, slots=True)
class CentredAssignmentOptions:
    """How DINO's target is sharpened and centred.

    Args:
        temperature: temperature t after the warm-up.
        warmup_temperature: t at the start.
        warmup_epochs: epochs in which t goes linearly from one to the other.
        momentum: momentum of the centre.
    """

    temperature: float = 0.07
    warmup_temperature: float = 0.04
    warmup_epochs: float = 50
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_within(
            self, temperature=_SHARP, warmup_temperature=_SHARP, warmup_epochs=(0, math.inf), momentum=(0, 1)
        )


@register_map("centred_assignment", "target", options=CentredAssignmentOptions(), assigns=True)
class CentredAssignment(Scheduled):
    """DINO's target map: softmax((scores - centre) / t), centred and sharpened (DINO section 3.1, eq. 4).

    The centre is an exponential mean of the teacher's scores over all views and processes; a batch is centred by
    earlier batches, and then added.

    Args:
        place: where the map stands; the prototypes are the teacher's.
        options: temperatures and momentum.
    """

    centre: Tensor

    def __init__(self, place: Place, options: CentredAssignmentOptions) -> None:
        super().__init__()
        self.prototypes = _prototypes(place)
        self.options, self.temperature = options, options.warmup_temperature
        self.register_buffer("centre", torch.zeros(self.prototypes.weight.shape[0]))

    def prepare(self, clock: Clock) -> None:
        """Warm up the temperature."""
        o = self.options
        self.temperature = ramp(clock, o.warmup_temperature, o.temperature, o.warmup_epochs)

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> probabilities (V, B, K), in float32 or better."""
        scores = self.prototypes(z)
        probabilities: Tensor = ((scores - self.centre) / self.temperature).softmax(dim=-1)
        if self.training:
            total = world_sum(torch.cat([scores.sum(dim=(0, 1)), scores.new_tensor([scores[..., 0].numel()])]))
            self.centre.lerp_(total[:-1] / total[-1], 1 - self.options.momentum)
        return probabilities
