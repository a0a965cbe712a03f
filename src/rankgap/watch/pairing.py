"""Which views of the two branches are compared. Ranks need no partner; alignment, filter and transfer do.

Shapes: V online views, G target views, each (N, D) or (B, T, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.spectra.float64 import at_least_float32

Views = dict[Side, list[Tensor]]
Pair = Literal["opposite", "same"]
PairRule = Pair | Callable[[list[Tensor], list[Tensor]], tuple[Tensor, Tensor]]

ROWS = 256  # of each view are compared where the order of the views is unknown


class Chosen(NamedTuple):
    """The part of a step's outputs that is read.

    Attributes:
        online: P, rows (N, D) or tokens (B, T, D).
        target: T. If the two pair, they have one shape, and row i of each comes from the same image (or the same
            token of it); otherwise numbers of rows and widths may differ.
        within: the online view that is T's own; None if the two do not pair. Ranks need no partner, but filter,
            transfer and eigenspace alignment do. A batch's directions are partly its noise, which another view of
            the same images does not share, so these are measured within one view where both branches give it.
        why: why the two do not pair; empty if they do.
    """

    online: Tensor
    target: Tensor
    within: Tensor | None
    why: str = ""


def choose(
    online: Sequence[Tensor], target: Sequence[Tensor], rule: PairRule = "opposite", *, ordered: bool = True
) -> Chosen:
    """The views that are compared: the first online view, and a target view of the same images.

    With "opposite" that is a view other than the online one's own, as in the losses of BYOL, SimSiam, SwAV and
    DINO; with "same" it is its own. In a known order, target view i is online view i's own. Where views come from
    separate calls, in whatever order, `kinship` tells which is which. If no online view has the shape of a target
    view, all views of each branch are taken together.

    Args:
        online: the views of the online branch, one or more.
        target: the views of the target branch; their number may differ.
        rule: "opposite", "same", or a function of both lists that returns P and T.
        ordered: whether both branches give their views in the same order.

    Raises:
        UserError: a function gave two views of different shapes.
    """
    if callable(rule):
        p, t = rule(list(online), list(target))
        if p.shape != t.shape:
            raise UserError(f"pair gave {tuple(p.shape)} and {tuple(t.shape)}: return two views of one shape")
        return Chosen(p, t, p)
    shape = next((t.shape for t in target if any(p.shape == t.shape for p in online)), None)
    if shape is None:
        why = f"online views are {_shapes(online)}, target views {_shapes(target)}"
        return Chosen(_together(online), _together(target), None, why)
    mine, theirs = ([view for view in views if view.shape == shape] for views in (online, target))
    away = min(len(theirs), 2) - 1 if rule == "opposite" else 0  # 0 is the online view's own, or the only one
    if ordered or len(mine) == len(theirs) == 1:
        return Chosen(mine[0], theirs[away], mine[away if len(mine) >= len(theirs) else 0])
    kin = kinship(mine, theirs)
    place = int(kin[0].argsort(descending=True)[away])
    return Chosen(mine[0], theirs[place], mine[int(kin[:, place].argmax())])


def kinship(online: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """How likely online view v and target view g are the same view of the same images (V, G).

    Two networks see the same likenesses between the images of a batch where they are given the same views of
    them. So this compares the centred Gram matrices of the rows, K_v and K_g, by <K_v, K_g> / (|K_v| |K_g|)
    (centred kernel alignment, Cortes et al. 2012; Kornblith et al. 2019). What an online view has in common with
    all target views, and a target view with all online ones, is subtracted. With two views each, the sign then is
    that of <K_1 - K_2, K_1' - K_2'>, to which only the views' own noise contributes.

    Args:
        online: V views of one shape.
        target: G views of that shape.
    """
    mine, theirs = (torch.stack([_likeness(view) for view in views]) for views in (online, target))
    alike: Tensor = mine.flatten(1) @ theirs.flatten(1).mT
    alike = alike - alike.mean(1, keepdim=True)
    return alike - alike.mean(0) if len(online) > 1 else alike


def evenly(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows (N, D), evenly spaced; all of them if there are no more."""
    return rows if len(rows) <= count else rows[torch.arange(count, device=rows.device) * len(rows) // count]


def _likeness(view: Tensor) -> Tensor:
    """The centred Gram matrix of at most `ROWS` rows, scaled to norm 1."""
    z = at_least_float32(evenly(view.detach().flatten(0, -2), ROWS))
    z = z - z.mean(0)
    gram = z @ z.mT
    likeness: Tensor = gram / gram.norm().clamp_min(torch.finfo(gram.dtype).tiny)
    return likeness


def _together(views: Sequence[Tensor]) -> Tensor:
    """All views of the first one's width as one."""
    views = [view for view in views if view.shape[-1] == views[0].shape[-1]]
    alike = all(view.shape[1:] == views[0].shape[1:] for view in views)
    return torch.cat([view if alike else view.flatten(0, -2) for view in views])


def _shapes(views: Sequence[Tensor]) -> str:
    """Every shape once, in words."""
    return ", ".join(str(shape) for shape in dict.fromkeys(tuple(view.shape) for view in views)) or "missing"
