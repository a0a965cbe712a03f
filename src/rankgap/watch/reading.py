"""One reading of both branches.

Shapes: N rows, D columns (or K prototypes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankgap.spectra.effective_rank import effective_rank_of, mean_energy
from rankgap.spectra.float64 import at_least_float32, with_float64
from rankgap.spectra.gram import is_finite, singular_values
from rankgap.spectra.tokens import image_means, position_share
from rankgap.watch.pairing import evenly


class Reading(NamedTuple):
    """One reading of both branches; numbers are NaN where a branch is all zero or not finite.

    Attributes:
        step: the training step.
        erank_online: effective rank of P's uncentred correlation (RDM's).
        erank_target: effective rank of T's uncentred correlation.
        rank_difference: erank_target - erank_online.
        erank_online_features: effective rank of P itself (Roy & Vetterli's).
        erank_target_features: effective rank of T itself.
        mean_energy_online: the share of P's energy in its mean row.
        mean_energy_target: the share of T's energy in its mean row.
        spread: 1 - |mean of the online rows scaled to length 1|^2, in [0, 1]; 0 if all point the same way.
        assignment: mean entropy of the target rows over ln K, in [0, 1]; None if the rows are not distributions.
        usage: entropy of the mean target row over ln K, 0 if one prototype takes everything; None as above.
        full_rank: min(N, D), the highest effective rank that these rows can have.
        exponent: the exponent that an `auto` filter chose for this step; None without such a filter.
        finite: whether both branches' outputs are finite numbers.
        rows: the number of rows of each branch that were read.
        spread_target: `spread` of the target rows.
        image_rank_online: effective rank of the online images' means over their tokens; None without tokens.
        image_rank_target: the same of the target images.
        position_share_online: the share of the online tokens' variance that their position explains, in [0, 1]; 1
            if all images have the same tokens. None without tokens.
        position_share_target: the same of the target tokens.
        images: the number of images that the tokens belong to; None without tokens.
    """

    step: int
    erank_online: float = math.nan
    erank_target: float = math.nan
    rank_difference: float = math.nan
    erank_online_features: float = math.nan
    erank_target_features: float = math.nan
    mean_energy_online: float = math.nan
    mean_energy_target: float = math.nan
    spread: float = math.nan
    assignment: float | None = None
    usage: float | None = None
    full_rank: float = math.nan
    exponent: float | None = None
    finite: bool = True
    rows: int = 0
    spread_target: float = math.nan
    image_rank_online: float | None = None
    image_rank_target: float | None = None
    position_share_online: float | None = None
    position_share_target: float | None = None
    images: int | None = None

    def numbers(self) -> dict[str, float]:
        """The measured numbers by name."""
        fields = self._asdict()
        return {
            name: value for name, value in fields.items() if name not in ("step", "finite") and value is not None
        }


@torch.no_grad()
def read(online: Tensor, target: Tensor, step: int) -> Reading:
    """Take a reading of P and T, each rows (N, D) or tokens of images (B, T, D); it waits for a GPU.

    An effective rank grows with the number of rows, so both branches are cut to the same number, evenly.
    """
    if not (is_finite(online) and is_finite(target)):
        return Reading(step, finite=False)
    count = min(math.prod(z.shape[:-1]) for z in (online, target))
    p, t = (with_float64(at_least_float32(evenly(z.detach().flatten(0, -2), count))) for z in (online, target))
    s_online, s_target = singular_values(p), singular_values(t)
    erank_online, erank_target = effective_rank_of(s_online), effective_rank_of(s_target)
    values = {
        "erank_online": erank_online,
        "erank_target": erank_target,
        "rank_difference": erank_target - erank_online,
        "erank_online_features": effective_rank_of(s_online, "features"),
        "erank_target_features": effective_rank_of(s_target, "features"),
        "mean_energy_online": mean_energy(p),
        "mean_energy_target": mean_energy(t),
        "spread": _spread(p),
        "spread_target": _spread(t),
    }
    if is_distribution(p) and is_distribution(t):
        scale = math.log(t.shape[-1])
        values["assignment"] = torch.special.entr(t).sum(-1).mean() / scale
        values["usage"] = torch.special.entr(t.mean(0)).sum() / scale
    tokens = {side: z.detach() for side, z in (("online", online), ("target", target)) if z.ndim == 3}
    images = min(map(len, tokens.values()), default=0)
    for side, z in tokens.items():
        z = with_float64(at_least_float32(evenly(z, images)))
        values[f"image_rank_{side}"] = effective_rank_of(singular_values(image_means(z)))
        values[f"position_share_{side}"] = position_share(z)
    numbers = torch.stack([v.double() for v in values.values()]).tolist()  # one transfer
    measured = dict(zip(values, numbers, strict=True))
    return Reading(step, full_rank=min(t.shape), rows=count, images=images or None, **measured)


def _spread(z: Tensor) -> Tensor:
    """1 - |mean of the rows scaled to length 1|^2; 0 if all rows are 0."""
    mean: Tensor = (1 / z.norm(dim=-1).clamp_min(1e-12)) @ z / len(z)
    return z.any() * (1 - mean.square().sum()).clamp_min(0)


def is_distribution(z: Tensor) -> bool:
    """Whether every row is a probability distribution over two prototypes or more."""
    return z.shape[-1] > 1 and bool((z >= 0).all()) and bool(((z.sum(-1) - 1).abs() < 1e-3).all())


def readings(metrics: Mapping[str, Sequence[float]]) -> list[Reading]:
    """The readings in the columns of a run's `metrics.csv`, without what is NaN; other columns are ignored."""
    known = [name for name in Reading._fields if name in metrics]
    lines = (dict(zip(known, row, strict=True)) for row in zip(*(metrics[name] for name in known), strict=True))
    whole = {"step", "rows", "images"}
    values = ({name: int(x) if name in whole else x for name, x in line.items() if x == x} for line in lines)
    return [Reading(**line) for line in values]  # type: ignore[arg-type]
