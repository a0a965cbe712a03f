"""The picture as code: views, an encoder, a projector, two maps, one alignment.

    image -> views -> encoder -> projector -+-> online map  -> P --+
                                            |                      +-> alignment loss
           (same weights, or an EMA copy) --+-> target map  -> T --+   (T carries no gradient)

The online branch sees every view. The target branch sees the first G of them: all of them, or the large ones
(multi-crop).

Shapes: V online views, G target views, B images per view, C channels, F feature width, D embedding width, D'
output width of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankgap.choices import Side
from rankgap.errors import check_within, unknown
from rankgap.model.alignments import Assigned, outputs_of
from rankgap.model.mlp import PerView, per_view
from rankgap.model.prototypes import Prototypes
from rankgap.model.schedule import Clock, Scheduled, teacher_momentum
from rankgap.spectra.pair import SIDES


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """How the EMA teacher follows the online branch.

    Args:
        momentum: momentum at the start; it ends at 1 (`schedule.teacher_momentum`).
    """

    momentum: float = 0.99

    def __post_init__(self) -> None:
        check_within(self, momentum=(0, 1))


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one step of a branch model.

    Args:
        loss: the alignment loss, a 0-d tensor.
        online: P (V, B, D'), the online map's output, before any normalisation.
        target: T (G, B, D'), the target map's output.
        features: the online encoder's features (V, B, F), the ones to use after training.
    """

    loss: Tensor
    online: Tensor
    target: Tensor
    features: Tensor


class Branch(nn.Module):
    """One branch: an encoder, a projector and, if the method has them, prototypes.

    Each view has its own batch-norm statistics, as in the methods' papers; without batch norm, views of one size
    pass together.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, prototypes: Prototypes | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = PerView(projector)
        self.prototypes = prototypes

    def forward(self, views: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Views (V, B, C, H, W), or a list of views of any sizes -> features (V, B, F), embeddings (V, B, D)."""
        features = per_view(self.encoder, views)
        return features, self.projector(features)


def _teacher(online: Branch) -> Branch:
    """A copy without gradients and without stochastic depth (drop path), as DINO's."""
    teacher = copy.deepcopy(online).requires_grad_(False)
    for part in teacher.modules():
        if "drop_prob" in vars(part):  # timm's DropPath has it
            vars(part)["drop_prob"] = 0.0
    return teacher


class DualBranch(nn.Module):
    """A two-branch model: every method of the zoo is one of these.

    The target branch shares the online weights (`momentum=None`), or is their exponential moving average.
    In the average, parameters are averaged after each step, while buffers (batch-norm statistics) are the
    teacher's own, from its forward passes in training mode, as the methods' authors have it.

    Args:
        online: the online encoder, projector and prototypes.
        online_map: embeddings (V, B, D) -> P, or `Assigned` if it knows the logarithm of P as well.
        make_target_map: called with the target branch, returns the target map; it needs the branch because
            prototypes belong to a branch.
        alignment: (the online map's output, T) -> loss; an `Alignment` takes both forms of the output.
        momentum: momentum of the EMA teacher at the start; it follows a cosine to 1 (BYOL section 3.3). None: the
            target branch shares the online weights.
        stop_gradient: whether the target is a constant, as in all methods except the symmetric ones.
        targets: G, the number of views that the target branch sees, the first ones; None for all.

    Example:
        >>> from rankgap.model.alignments import cosine
        >>> branch = Branch(nn.Flatten(), nn.Linear(12, 4))
        >>> model = DualBranch(branch, nn.Identity(), lambda teacher: nn.Identity(), cosine)
        >>> model(torch.randn(2, 8, 3, 2, 2)).online.shape
        torch.Size([2, 8, 4])
    """

    def __init__(
        self,
        online: Branch,
        online_map: nn.Module,
        make_target_map: Callable[[Branch], nn.Module],
        alignment: Callable[[Any, Tensor], Tensor],
        *,
        momentum: float | None = None,
        stop_gradient: bool = True,
        targets: int | None = None,
    ) -> None:
        super().__init__()
        self.online = online
        self.online_map = online_map
        self.teacher = None if momentum is None else _teacher(online)
        self.target_map = make_target_map(self.teacher or online)
        self.alignment = alignment
        self.momentum = momentum
        self.stop_gradient = stop_gradient
        self.targets = targets

    def forward(self, views: Tensor | Sequence[Tensor]) -> Outputs:
        """One pass of both branches.

        Args:
            views: (V, B, C, H, W), or a list of V tensors (B, C, H, W), whose sizes may differ; those that the
                target branch sees come first. V >= 2, B >= 2 in training.
        """
        features, z = self.online(views)  # (V, B, F), (V, B, D)
        given: Tensor | Assigned = self.online_map(z)
        p = outputs_of(given)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            if self.teacher is not None:
                z = self.teacher(views[: self.targets])[1]
            z = z[: self.targets]
            t = self.target_map(z.detach() if self.stop_gradient else z)
        with torch.autocast(p.device.type, enabled=False):  # a loss in bfloat16 has only two digits
            loss = self.alignment(given, t)
        return Outputs(loss, p, t, features)

    def encoder(self, side: Side = "online") -> nn.Module:
        """The encoder of a branch (the same one where weights are shared)."""
        if side not in SIDES:
            raise unknown("branch", side, SIDES)
        return (self.online if side == "online" or self.teacher is None else self.teacher).encoder

    def prepare(self, clock: Clock) -> None:
        """Pass the clock to every scheduled module; call this before each training step."""
        for module in self.modules():
            if isinstance(module, Scheduled):
                module.prepare(clock)

    def momentum_at(self, clock: Clock) -> float:
        """The EMA momentum of a step (`schedule.teacher_momentum`); 0 if the weights are shared."""
        return 0.0 if self.momentum is None else teacher_momentum(clock, self.momentum)

    @torch.no_grad()
    def update_teacher(self, clock: Clock) -> None:
        """Move the teacher towards the online branch; call this after each optimiser step."""
        if self.teacher is None:
            return
        online = [p.detach() for p in self.online.parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), online, 1 - self.momentum_at(clock))
