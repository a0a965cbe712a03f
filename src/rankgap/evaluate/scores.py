"""Scores without labels, by name: what each takes, which way is best, and what it may be used to compare.

Shapes: N images, q views of each, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rankgap.data import ImageSet
from rankgap.errors import UserError
from rankgap.evaluate import label_free
from rankgap.evaluate.features import evaluating
from rankgap.spectra.effective_rank import effective_rank, rankme
from rankgap.views.random_views import Views

VIEWS = 4  # of each image, for the scores that need the training's views

BATCH = 256

_ONE_METHOD = "compares checkpoints and runs of one method, encoder and data set"


@dataclass(frozen=True, slots=True)
class Score:
    """A label-free score.

    Args:
        function: features (N, F), or of views (N, q, F), -> 0-d.
        takes: which of the two.
        best: the direction that goes with accuracy.
        valid: what it compares, as far as its authors showed, or what it is read beside.
    """

    function: Callable[[Tensor], Tensor]
    takes: Literal["features", "views"]
    best: Literal["highest", "lowest", "nearest 1"]
    valid: str


SCORES: dict[str, Score] = {
    "RankMe": Score(rankme, "features", "highest", f"{_ONE_METHOD} (Garrido et al. 2023, section 4)"),
    "effective rank": Score(effective_rank, "features", "highest", f"{_ONE_METHOD}, as RankMe"),
    "NESum": Score(label_free.nesum, "features", "highest", f"{_ONE_METHOD} (He & Ozay 2022)"),
    "alpha-ReQ": Score(
        label_free.alpha_req,
        "features",
        "nearest 1",
        f"{_ONE_METHOD}; not where features collapsed, for no power law fits those (Agrawal et al. 2022)",
    ),
    "LiDAR": Score(
        label_free.lidar,
        "views",
        "highest",
        "compares different methods too, where the views are those of training (Thilak et al. 2024)",
    ),
    "CL": Score(
        label_free.cluster_learnability,
        "features",
        "highest",
        "is read beside ID: a constant encoder has 1 (Lu et al. 2022)",
    ),
    "ID": Score(
        label_free.intrinsic_dimension,
        "features",
        "highest",
        "is read beside CL: noise has the highest",
    ),
    "uniformity": Score(
        label_free.uniformity, "features", "lowest", "is read beside alignment (Wang & Isola 2020)"
    ),
    "alignment": Score(
        lambda z: label_free.alignment(z[:, 0], z[:, 1]),
        "views",
        "lowest",
        "is read beside uniformity: a constant encoder has 0 (Wang & Isola 2020)",
    ),
}


class Rated(NamedTuple):
    """A checkpoint's value of a score; NaN where it is not defined (a collapsed encoder).

    Attributes:
        value: on the whole sample.
        half: half the width of its 95% interval over samples of images.
    """

    value: float
    half: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunScores:
    """All checkpoints of a run.

    Args:
        title: of the run.
        images: in the sample.
        steps: checkpoint -> step of training.
        rated: checkpoint -> score -> value.
    """

    title: str
    images: int
    steps: dict[str, int]
    rated: dict[str, dict[str, Rated]]

    def best(self, score: str) -> tuple[str, list[str]]:
        """The best checkpoint by a score, and those that its interval does not tell from it.

        A checkpoint under two names (an epoch's that is the last too) counts once, under its epoch's.
        """
        by_step = {
            self.steps[name]: name for name in sorted(self.rated, key=lambda name: name.startswith("epoch-"))
        }
        values = {name: self.rated[name][score] for name in by_step.values()}
        values = {name: rated for name, rated in values.items() if math.isfinite(rated.value)}
        if not values:
            return "", []
        worth: dict[str, Callable[[float], float]] = {
            "highest": lambda v: v,
            "lowest": lambda v: -v,
            "nearest 1": lambda v: -abs(v - 1),
        }
        key = worth[SCORES[score].best]
        first = max(values, key=lambda name: key(values[name].value))
        top = values[first]
        near = [
            name
            for name, rated in values.items()
            if name != first and abs(key(rated.value) - key(top.value)) <= math.hypot(rated.half, top.half)
        ]
        return first, near


def rate(score: Score, z: Tensor, *, repeats: int = 20, seed: int = 0) -> Rated:
    """A score with its interval over samples of images.

    The interval is 1.96 standard deviations of the score on random halves of the rows: for a mean, that is the
    spread of the whole sample's. (Drawing with replacement instead would repeat rows, and lower every rank.)

    Args:
        score: which.
        z: what it takes.
        repeats: halves.
        seed: of the choice.
    """
    value = _value(score, z)
    generator = torch.Generator().manual_seed(seed)
    halves = [_value(score, z[torch.randperm(len(z), generator=generator)[: len(z) // 2]]) for _ in range(repeats)]
    spread = torch.tensor(halves, dtype=torch.float64).std()
    return Rated(value, 1.96 * float(spread))


def _value(score: Score, z: Tensor) -> float:
    try:
        return float(score.function(z))
    except UserError:  # all features equal, or too few eigenvalues: not defined there
        return math.nan


@torch.inference_mode()
def view_features(
    encoder: nn.Module, images: ImageSet, views: Views, *, count: int = VIEWS, seed: int = 0
) -> Tensor:
    """Features of the training's views of each image, in evaluation mode.

    Args:
        encoder: (B, C, S, S) -> (B, F).
        images: N.
        views: the training's.
        count: q, a multiple of the number of views it makes.
        seed: of the views.

    Returns:
        (N, q, F) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with evaluating(encoder):
        for rows in torch.split(torch.arange(len(images)), BATCH):
            batch = images.batch(rows)
            drawn: list[Tensor] = []
            while len(drawn) < count:
                drawn += views(batch.images, batch.sizes, generator).unbind(0)
            parts.append(torch.stack([encoder(view).float() for view in drawn[:count]], dim=1))
    return torch.cat(parts)
