"""The zoo. A method is a row: which maps stand on the two branches, and how they are aligned.

To add a method, add a row to `METHODS`; a new map goes to `maps.py` and gets a line in `_MAPS`, a new closed-form
predictor is a row of `predictors.CLOSED_FORMS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from rankgap.errors import UserError, unknown
from rankgap.filters.gains import Scale, parse_gain
from rankgap.filters.learned import LearnedFilter
from rankgap.filters.spectral import SpectralFilter
from rankgap.model.alignments import ALIGNMENTS
from rankgap.model.branches import Branch, DualBranch
from rankgap.model.closed_forms import CLOSED_FORMS, ClosedFormPredictor, closed_form
from rankgap.model.mlp import PerView, mlp
from rankgap.model.prototypes import Assignment, CentredAssignment, Prototypes, SinkhornCodes
from rankgap.run.recipes import Heads, load_recipe
from rankgap.spectra.pair import Side

if TYPE_CHECKING:
    from rankgap.model.backbones import Encoder

Body = Literal["byol", "simsiam", "swav", "dino"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A row of the zoo.

    Args:
        online: the maps of the online branch, in order; names of `_MAPS`, of `PREDICTORS`, or gains of a spectral
            filter.
        target: the same for the target branch, but no predictor.
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
    "directpred": Method(
        online=("directpred",), alignment="regression", body="byol", ema=True, source="Tian et al. 2021"
    ),
    # 1/2 would be directpred, 1 is directcopy but for eps and momentum.
    "directset": Method(
        online=("directset:2",), alignment="regression", body="byol", ema=True, source="Wang et al. 2021"
    ),
    "directcopy": Method(
        online=("directcopy",),
        alignment="regression",
        body="byol",
        ema=True,
        source="Wang et al. 2021, as Halvagal et al. 2023 run it",
    ),
    "isoloss": Method(
        online=("isoloss",), alignment="regression", body="byol", ema=True, source="Halvagal et al. 2023, cosine"
    ),
    "isoloss_l2": Method(
        online=("isoloss",), alignment="squared", body="byol", ema=True, source="Halvagal et al. 2023, Euclidean"
    ),
}


PREDICTORS = ("predictor", "learned", *CLOSED_FORMS, "directset:alpha")


def is_predictor(name: str) -> bool:
    """Whether a map predicts the target, and so stands on the online branch alone: is it one of `PREDICTORS`?

    Raises:
        UserError: `directset` without its power.
    """
    return name in ("predictor", "learned") or closed_form(name) is not None


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


def _linear_map(name: str, side: Side, heads: Heads, width: int, scale: Scale) -> nn.Module:
    """A map that a spectrum decides: a closed-form predictor, the learned filter, or the filter of a gain."""
    if (form := closed_form(name)) is not None:
        return ClosedFormPredictor(form, width, momentum=heads.correlation_momentum)
    if name == "learned":
        if heads.estimator != "batch":
            raise UserError("a learned filter takes each batch's own spectrum: set heads.estimator to batch")
        return LearnedFilter(scale, solver=heads.solver)
    return SpectralFilter(
        name,
        side,
        scale,
        solver=heads.solver,
        estimator=heads.estimator,
        dim=width,
        momentum=heads.estimator_momentum,
        every=heads.estimator_every,
    )


def _replaced(maps: tuple[str, ...], choice: str | None, beside: tuple[str, ...]) -> tuple[str, ...]:
    """The maps of a branch with the user's choice in the predictor's place, in front of any prototypes.

    `beside` are the names that may stand there and are no gains.
    """
    if choice is None:
        return maps
    rest = tuple(name for name in maps if not is_predictor(name))
    if choice == "identity":
        return rest
    if not is_predictor(choice):
        parse_gain(choice, beside=beside)
    return (choice, *rest)


def design(method: str, *, online: str | None = None, target: str | None = None) -> Method:
    """A row of the zoo, with a filter on either branch.

    A filter takes the predictor's place; where a method assigns to prototypes, it acts on the embeddings
    before they are assigned. With a target filter alone the predictor goes too (it would be a second
    asymmetry): `online="predictor"` keeps it.

    Args:
        method: a name of `METHODS`.
        online: None (the method's own), "identity", one of `PREDICTORS`, or a gain such as "power:0.5".
        target: None, "identity", or a gain such as "power:-0.5".

    Raises:
        UserError: an unknown method or gain, or a predictor on the target.

    Example:
        >>> design("simsiam", target="power:-0.5").online
        ()
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if target is not None and is_predictor(target):
        raise UserError(f"{target} stands on the online branch; the target takes identity or a gain")
    row = METHODS[method]
    if target not in (None, "identity") and online is None:
        online = "identity"
    return dataclasses.replace(
        row,
        online=_replaced(row.online, online, ("identity", *PREDICTORS)),
        target=_replaced(row.target, target, ("identity",)),
    )


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
        online: replaces the online map: "identity", one of `PREDICTORS`, or a gain ("power:0.5", "log1p").
        target: replaces the target map: "identity" or a gain ("power:-0.5").
        heads: widths, temperatures and momenta; the method's CIFAR recipe by default.
        channels: channels of an image.
        size: side of a view in pixels (it decides the stem).
        views: number of views a step.
        scale: what a gain acts on: "rms", s / sqrt(N), or "raw", s (as the RDM authors wrote it).

    Raises:
        UserError: an unknown method, gain or backbone, with the nearest name there is; or a learned filter beside
            `heads.estimator` "ema", which no gradient of its gain would pass.

    Example:
        >>> import torch
        >>> model = build("byol", backbone="resnet_tiny", target="power:-0.5")
        >>> model(torch.randn(2, 8, 3, 32, 32)).target.shape
        torch.Size([2, 8, 256])
    """
    from rankgap.model.backbones import build_encoder

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

    def maps(side: Side, branch: Branch) -> nn.Sequential:
        names = row.online if side == "online" else row.target
        return nn.Sequential(
            *(
                _MAPS[name](branch, heads, width, views)
                if name in _MAPS
                else _linear_map(name, side, heads, width, scale)
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
