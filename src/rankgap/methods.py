"""The zoo. A method is a row: which maps stand on the two branches, and how they are aligned.

To add a method, add a row to `METHODS`; a new map goes to `maps.py` and gets a line in `_MAPS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from rankgap.backbones import Encoder, build_encoder
from rankgap.branches import ALIGNMENTS, Branch, DualBranch
from rankgap.errors import UserError, unknown
from rankgap.filters import Scale, Side, SpectralFilter
from rankgap.gains import parse_gain
from rankgap.maps import Assignment, CentredAssignment, PerView, Prototypes, SinkhornCodes, mlp
from rankgap.recipes import Heads, load_recipe

Body = Literal["byol", "simsiam", "swav", "dino"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A row of the zoo.

    Args:
        online: the maps of the online branch, in order; names of `_MAPS` or gains of a spectral filter.
        target: the same for the target branch.
        alignment: a name of `branches.ALIGNMENTS`.
        body: whose projector, optimiser and views it is trained with by default.
        ema: the target branch is an EMA copy (else it shares the weights).
        stop_gradient: the target is a constant.
        source: the paper.
    """

    online: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    alignment: str = "cosine"
    body: Body
    ema: bool = False
    stop_gradient: bool = True
    source: str


METHODS: dict[str, Method] = {
    "siamese": Method(
        alignment="cosine",
        body="byol",
        stop_gradient=False,
        source="the control: nothing keeps it from collapsing, and it does",
    ),
    "symsimsiam": Method(
        alignment="centred_cosine",
        body="simsiam",
        stop_gradient=False,
        source="Zhuo et al. 2023, section 3: symmetric, centred; collapses in dimension",
    ),
    "simsiam": Method(online=("predictor",), body="simsiam", source="Chen & He 2021"),
    "byol": Method(
        online=("predictor",), alignment="regression", body="byol", ema=True, source="Grill et al. 2020"
    ),
    "swav": Method(
        online=("assignment",),
        target=("sinkhorn",),
        alignment="cross_entropy",
        body="swav",
        source="Caron et al. 2020",
    ),
    "dino": Method(
        online=("assignment",),
        target=("centred_assignment",),
        alignment="cross_entropy",
        body="dino",
        ema=True,
        source="Caron et al. 2021",
    ),
}


def _predictor(branch: Branch, heads: Heads, width: int, views: int) -> nn.Module:
    if not heads.predictor:
        raise UserError("this method has a predictor, and the recipe gives it no width: set heads.predictor")
    return PerView(mlp((width, *heads.predictor, width), activation=heads.activation))


def _assignment(branch: Branch, heads: Heads, width: int, views: int) -> nn.Module:
    assert branch.prototypes is not None
    return Assignment(branch.prototypes, heads.temperature)


def _sinkhorn(branch: Branch, heads: Heads, width: int, views: int) -> nn.Module:
    assert branch.prototypes is not None
    return SinkhornCodes(
        branch.prototypes,
        eps=heads.sinkhorn_eps,
        iterations=heads.sinkhorn_iterations,
        views=views,
        queue=heads.queue,
        queue_epochs=heads.queue_epochs,
    )


def _centred_assignment(branch: Branch, heads: Heads, width: int, views: int) -> nn.Module:
    assert branch.prototypes is not None
    return CentredAssignment(
        branch.prototypes,
        temperature=heads.teacher_temperature,
        warmup_temperature=heads.teacher_warmup_temperature,
        warmup_epochs=heads.teacher_warmup_epochs,
        momentum=heads.centre_momentum,
    )


_MAPS: dict[str, Callable[[Branch, Heads, int, int], nn.Module]] = {
    "predictor": _predictor,
    "assignment": _assignment,
    "sinkhorn": _sinkhorn,
    "centred_assignment": _centred_assignment,
}


def _replaced(maps: tuple[str, ...], choice: str | None) -> tuple[str, ...]:
    """The maps of a branch with the user's choice in the predictor's place, in front of any prototypes."""
    if choice is None:
        return maps
    rest = tuple(name for name in maps if name != "predictor")
    if choice == "identity":
        return rest
    if choice != "predictor":
        parse_gain(choice)
    return (choice, *rest)


def design(method: str, *, online: str | None = None, target: str | None = None) -> Method:
    """A row of the zoo, with a filter on either branch.

    A filter takes the predictor's place; where a method assigns to prototypes, it acts on the embeddings
    before they are assigned. With a target filter alone the predictor goes too (it would be a second
    asymmetry): `online="predictor"` keeps it.

    Args:
        method: a name of `METHODS`.
        online: None (the method's own), "identity", "predictor", or a gain such as "power:0.5".
        target: None, "identity", or a gain such as "power:-0.5".

    Raises:
        UserError: an unknown method or gain, or a predictor on the target.

    Example:
        >>> design("simsiam", target="power:-0.5").online
        ()
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if target == "predictor":
        raise UserError("a predictor stands on the online branch; the target takes identity or a gain")
    row = METHODS[method]
    if target not in (None, "identity") and online is None:
        online = "identity"
    return dataclasses.replace(row, online=_replaced(row.online, online), target=_replaced(row.target, target))


def title(method: str, *, online: str | None = None, target: str | None = None) -> str:
    """How a design is called in tables: its method, and the filters on it."""
    parts = [f"{side} {gain}" for side, gain in (("online", online), ("target", target)) if gain is not None]
    return " ".join([method, *parts])


def build(
    method: str | Method,
    *,
    backbone: str | Encoder = "resnet18",
    online: str | None = None,
    target: str | None = None,
    heads: Heads | None = None,
    channels: int = 3,
    size: int = 32,
    views: int = 2,
    scale: Scale = "rms",
) -> DualBranch:
    """A branch model: a plain `nn.Module` whose forward takes views and gives `Outputs`.

    Args:
        method: a name of the zoo, or a row of your own.
        backbone: `resnet_tiny`, any timm name, or an encoder with its width in `.features`.
        online: replaces the online map: "identity", "predictor" or a gain ("power:0.5", "log1p").
        target: replaces the target map: "identity" or a gain ("power:-0.5").
        heads: widths, temperatures and momenta; the method's CIFAR recipe by default.
        channels: channels of an image.
        size: side of a view in pixels (it decides the stem).
        views: number of views a step.
        scale: what a gain acts on: "rms", s / sqrt(N), or "raw", s (as the RDM authors wrote it).

    Raises:
        UserError: an unknown method, gain or backbone, with the nearest name there is.

    Example:
        >>> import torch
        >>> model = build("byol", backbone="resnet_tiny", target="power:-0.5")
        >>> model(torch.randn(2, 8, 3, 32, 32)).target.shape
        torch.Size([2, 8, 256])
    """
    row = design(method, online=online, target=target) if isinstance(method, str) else method
    heads = heads or load_recipe("cifar", row.body).heads
    encoder = build_encoder(backbone, channels=channels, size=size) if isinstance(backbone, str) else backbone
    projector = mlp(
        (encoder.features, *heads.projector),
        norm=heads.projector_norm,
        output_norm=heads.projector_output_norm,
        activation=heads.activation,
    )
    width = heads.projector[-1]
    assigns = {"assignment", "sinkhorn", "centred_assignment"} & {*row.online, *row.target}
    prototypes = Prototypes(width, heads.prototypes, freeze_epochs=heads.freeze_epochs) if assigns else None

    spectral = partial(
        SpectralFilter,
        scale=scale,
        solver=heads.solver,
        estimator=heads.estimator,
        dim=width,
        momentum=heads.estimator_momentum,
        every=heads.estimator_every,
    )

    def maps(side: Side, branch: Branch) -> nn.Sequential:
        names = row.online if side == "online" else row.target
        return nn.Sequential(
            *(
                _MAPS[name](branch, heads, width, views) if name in _MAPS else spectral(name, side)
                for name in names
            )
        )

    branch = Branch(encoder, projector, prototypes)
    return DualBranch(
        branch,
        maps("online", branch),
        lambda teacher: maps("target", teacher),
        ALIGNMENTS[row.alignment],
        momentum=heads.momentum if row.ema else None,
        stop_gradient=row.stop_gradient,
    )
