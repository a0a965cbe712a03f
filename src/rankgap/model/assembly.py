"""Assembling a model from a row, an encoder and options."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.model.alignments import ALIGNMENTS
from rankgap.model.branches import Branch, DualBranch
from rankgap.model.heads import Heads
from rankgap.model.maps import Place
from rankgap.model.methods import Method
from rankgap.model.mlp import mlp
from rankgap.model.prototypes import Prototypes

LARGEST_HEADS = 2**31  # numbers in both branches: 8 GiB in float32


def assemble(
    row: Method, encoder: nn.Module, heads: Heads, *, features: int, views: int = 2, targets: int | None = None
) -> DualBranch:
    """A branch model: a plain `nn.Module` whose forward takes views and returns `Outputs`.

    Args:
        row: the method, filters included.
        encoder: images (B, C, H, W) -> (B, F).
        heads: the options of everything after the encoder; a recipe has them too.
        features: width F of the encoder's output.
        views: number of views V per step.
        targets: number of views G that the target branch sees, the first ones; None for all.

    Raises:
        UserError: a map is unknown, stands on the wrong branch, or its options do not fit it; or the heads are too
            large for any machine.
    """
    seen: dict[Side, int] = {"online": views, "target": views if targets is None else targets}
    if not 1 <= seen["target"] <= views or views < 2:
        raise UserError(
            f"expected two views or more, of which the target branch sees at least one, got {views} and {targets}"
        )
    try:
        with torch.device("meta"):  # a shape without memory
            state = _assembled(row, nn.Identity(), heads, features, seen).state_dict()
        count = sum(part.numel() for part in state.values() if isinstance(part, Tensor))
    except RuntimeError:  # torch cannot even count it
        count = sys.maxsize
    if count > LARGEST_HEADS:
        raise UserError(
            f"the projector, prototypes and maps would hold {count:.2g} numbers, but the "
            f"limit is {LARGEST_HEADS:.2g}: lower projector.widths, prototypes.count or the maps' widths"
        )
    return _assembled(row, encoder, heads, features, seen)


def _assembled(
    row: Method, encoder: nn.Module, heads: Heads, features: int, seen: Mapping[Side, int]
) -> DualBranch:
    options = heads.projector
    width = options.widths[-1]
    projector = mlp(
        (features, *options.widths),
        norm=options.norm,
        output_norm=options.output_norm,
        activation=options.activation,
    )
    if row.assigns and heads.prototypes.count < 2:
        raise UserError(
            f"this method needs two prototypes or more, got {heads.prototypes.count}: set prototypes.count"
        )
    prototypes = Prototypes(width, heads.prototypes) if row.assigns else None

    def maps(side: Side, branch: Branch) -> nn.Sequential:
        return nn.Sequential(
            *(
                kind.build(
                    Place(side=side, dim=width, views=seen[side], prototypes=branch.prototypes, argument=argument),
                    heads.options(side, kind, argument),
                )
                for kind, argument in row.maps(side)
            )
        )

    online = Branch(encoder, projector, prototypes)
    return DualBranch(
        online,
        maps("online", online),
        lambda target: maps("target", target),
        ALIGNMENTS[row.alignment],
        momentum=heads.teacher.momentum if row.ema else None,
        stop_gradient=row.stop_gradient,
        targets=seen["target"],
    )
