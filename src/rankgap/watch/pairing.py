"""Which views of the two branches are compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rankgap.errors import UserError

BranchOutput = Tensor | Sequence[Tensor]  # one step's rows (N, D), or all its views (V, B, D)


def opposite_views(online: BranchOutput, target: BranchOutput) -> tuple[Tensor, Tensor]:
    """Online view 1 and target view 2 of the same images; target view 1 if it is the only one.

    Args:
        online: rows (N, D), which are taken as they are, or all views of a step (V, B, D).
        target: the same for the target branch; its number of views may differ.

    Returns:
        P (N, D) and T (N, D).

    Raises:
        UserError: the two are not (N, D) of the same shape.
    """
    p, t = _views(online)[0], _views(target)[:2][-1]
    if p.shape != t.shape or p.ndim != 2:
        raise UserError(
            f"the branches are compared row by row, so both must have one shape (N, D): online is "
            f"{tuple(p.shape)}, target {tuple(t.shape)}"
        )
    return p, t


def same_view(online: BranchOutput, target: BranchOutput) -> Tensor:
    """The online rows (N, D) of the view whose target rows `opposite_views` gives.

    Ranks need no partner, but filter, transfer and eigenspace alignment do. A batch's directions are partly its
    noise, which another view of the same images does not share, so these are measured within one view where both
    branches give it; otherwise between the two views that are compared.
    """
    online, target = _views(online), _views(target)
    place = min(len(target), 2) - 1
    return online[place] if len(online) == len(target) else online[0]


def _views(output: BranchOutput) -> BranchOutput:
    return output[None] if isinstance(output, Tensor) and output.ndim == 2 else output
