"""Prototypes, and the maps that assign embeddings to them: SwAV's and DINO's.

Shapes: V views, B images a view, D embedding width, K prototypes. A map takes embeddings (V, B, D) of all
views at once, because a target map may look at a batch as a whole (Sinkhorn, centring), and treats each view
as a batch of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.model.schedule import Clock, Scheduled
from rankgap.spectra.processes import world_sum


class Prototypes(Scheduled):
    """Cosine similarities of embeddings to K learned unit vectors (SwAV section 3.1; DINO's last layer).

    The weight is normalised in the forward pass (DINO's weight norm with its gain fixed at 1), where SwAV's
    authors project it onto the sphere after each step: the same function, with the gradient's radial part
    removed.

    Args:
        dim: embedding width D.
        count: number of prototypes K.
        freeze_epochs: epochs at the start in which the prototypes do not move.
    """

    def __init__(self, dim: int, count: int, *, freeze_epochs: float = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))
        self.freeze_epochs = freeze_epochs
        self.frozen = freeze_epochs > 0

    def prepare(self, clock: Clock) -> None:
        """Freeze at first, then let go."""
        self.frozen = clock.epoch < self.freeze_epochs

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> cosines (..., K), float32: temperatures magnify what bfloat16 would round away."""
        # A zero gradient rather than none: distributed training expects one of every parameter.
        weight = self.weight.detach() + 0 * self.weight if self.frozen else self.weight
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(z.float(), dim=-1), F.normalize(weight, dim=1))


class Assignment(nn.Module):
    """Soft assignment to prototypes, softmax(scores / t): the online map of SwAV and DINO.

    Args:
        prototypes: the prototypes, shared with (or averaged into) the target map.
        temperature: t; smaller is sharper.
    """

    def __init__(self, prototypes: Prototypes, temperature: float) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.temperature = temperature

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> probabilities (V, B, K), float32."""
        probabilities: Tensor = (self.prototypes(z).float() / self.temperature).softmax(dim=-1)
        return probabilities


def sinkhorn(scores: Tensor, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes that use every prototype equally: Sinkhorn-Knopp on exp(scores / eps) (SwAV, eq. 3 to 5).

    Args:
        scores: (..., N, K); the N rows of a view are balanced together, over all ranks.
        eps: entropy of the transport; smaller gives harder codes.
        iterations: row and column normalisations; the last one makes the rows sum to 1.

    Returns:
        (..., N, K) float32, each row a distribution; column sums tend to N / K.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logits = scores.float() / eps
        codes = (logits - logits.amax(dim=(-2, -1), keepdim=True)).exp()
        for _ in range(iterations):
            codes = codes / world_sum(codes.sum(dim=-2, keepdim=True))  # prototypes share the mass
            codes = codes / codes.sum(dim=-1, keepdim=True)  # each image has mass 1
        return codes


class SinkhornCodes(Scheduled):
    """SwAV's target map: balanced codes of a batch, helped by a queue of earlier embeddings.

    Args:
        prototypes: the online branch's own prototypes.
        eps: entropy of the transport.
        iterations: Sinkhorn iterations.
        views: number of views V; each has a queue of its own, since a view and its twin must not compete.
        queue: length of the queue in embeddings, over all ranks' own queues; 0 for none.
        queue_epochs: epochs before the queue is used; it is also left alone until it is full.
    """

    queue: Tensor

    def __init__(
        self,
        prototypes: Prototypes,
        *,
        eps: float = 0.05,
        iterations: int = 3,
        views: int = 2,
        queue: int = 0,
        queue_epochs: float = 0,
    ) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.eps, self.iterations, self.queue_epochs = eps, iterations, queue_epochs
        self.register_buffer("queue", torch.zeros(views, queue, prototypes.weight.shape[1]))
        self.steps, self.due = 0, False

    def prepare(self, clock: Clock) -> None:
        """Note the time: the queue is used from its epoch on, once it is full."""
        self.steps, self.due = clock.step, clock.epoch >= self.queue_epochs

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> codes (V, B, K), float32."""
        batch, length = z.shape[1], self.queue.shape[1]
        if length == 0:
            return sinkhorn(self.prototypes(z), eps=self.eps, iterations=self.iterations)
        full = self.steps * batch >= length
        rows = torch.cat([z, self.queue.to(z)], dim=1) if self.due and full else z
        codes = sinkhorn(self.prototypes(rows), eps=self.eps, iterations=self.iterations)[:, :batch]
        if self.training:
            newest = torch.cat([z.detach().to(self.queue), self.queue], dim=1)
            self.queue.copy_(newest[:, :length])
        return codes


class CentredAssignment(Scheduled):
    """DINO's target map: softmax((scores - centre) / t), centred and sharpened (DINO section 3.1, eq. 4).

    The centre is an exponential mean of the teacher's scores over all views and ranks; a batch is centred by
    what came before it, then added.

    Args:
        prototypes: the teacher's prototypes.
        temperature: t after the warm-up.
        warmup_temperature: t at the start.
        warmup_epochs: epochs in which t goes from one to the other, linearly.
        momentum: of the centre.
    """

    centre: Tensor

    def __init__(
        self,
        prototypes: Prototypes,
        *,
        temperature: float = 0.07,
        warmup_temperature: float = 0.04,
        warmup_epochs: float = 50,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.final, self.initial, self.warmup_epochs = temperature, warmup_temperature, warmup_epochs
        self.temperature, self.momentum = warmup_temperature, momentum
        self.register_buffer("centre", torch.zeros(prototypes.weight.shape[0]))

    def prepare(self, clock: Clock) -> None:
        """Warm the temperature up."""
        share = min(clock.epoch / self.warmup_epochs, 1.0) if self.warmup_epochs > 0 else 1.0
        self.temperature = self.initial + (self.final - self.initial) * share

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> probabilities (V, B, K), float32."""
        scores = self.prototypes(z).float()
        probabilities: Tensor = ((scores - self.centre) / self.temperature).softmax(dim=-1)
        if self.training:
            total = world_sum(torch.cat([scores.sum(dim=(0, 1)), scores.new_tensor([scores[..., 0].numel()])]))
            self.centre.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return probabilities
