"""Scores without labels, by name: their input, the direction that is best, and what they may compare.

Shapes: N images, q views or T tokens of each, B images in a batch, C channels, S side of a view, F feature width.
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
from rankgap.evaluate.batches import batch_for, views_of
from rankgap.evaluate.dense import dse
from rankgap.evaluate.features import evaluating
from rankgap.spectra.effective_rank import effective_rank, rankme
from rankgap.spectra.tokens import between_image_share, position_share
from rankgap.views import Views

VIEWS = 4  # of each image, for the scores that need the views of training
TOKEN_IMAGES = 256  # images, at most, for the scores of tokens: they hold as many rows as 4,096 features or more
BATCH = 256  # images per forward pass

_NORMAL = 1.96  # standard deviations to each side of the mean that hold 95% of a normal distribution

_ONE_METHOD = "compares checkpoints and runs of one method, encoder and data set"


@dataclass(frozen=True, slots=True)
class Score:
    """A label-free score.

    Args:
        function: features (N, F), features of views (N, q, F), or tokens (N, T, F), -> 0-d.
        takes: which of the three it is.
        best: the direction that goes with accuracy; None if there is none, as for a share that describes.
        valid: what the score may compare, as far as its authors showed, or what to read it together with. It
            completes a sentence that starts with the score's name.
        first: whether it is one of the main scores for comparing a run's checkpoints: its authors showed that it
            is valid for that by itself.
    """

    function: Callable[[Tensor], Tensor]
    takes: Literal["features", "views", "tokens"]
    best: Literal["highest", "lowest", "nearest 1"] | None
    valid: str
    first: bool = False


SCORES: dict[str, Score] = {
    "RankMe": Score(rankme, "features", "highest", f"{_ONE_METHOD} (Garrido et al. 2023, section 4)", first=True),
    "effective rank": Score(effective_rank, "features", "highest", f"{_ONE_METHOD}, as RankMe"),
    "NESum": Score(label_free.nesum, "features", "highest", f"{_ONE_METHOD} (He & Ozay 2022)"),
    "alpha-ReQ": Score(
        label_free.alpha_req,
        "features",
        "nearest 1",
        f"{_ONE_METHOD}; not where features collapsed, because no power law fits those (Agrawal et al. 2022)",
        first=True,
    ),
    "LiDAR": Score(
        label_free.lidar,
        "views",
        "highest",
        "also compares different methods, if the views are those of training (Thilak et al. 2024)",
        first=True,
    ),
    "CL": Score(
        label_free.cluster_learnability,
        "features",
        "highest",
        "is read together with ID: a constant encoder has 1 (Lu et al. 2022)",
    ),
    "ID": Score(
        label_free.intrinsic_dimension,
        "features",
        "highest",
        "is read together with CL: noise has the highest",
    ),
    "uniformity": Score(
        label_free.uniformity, "features", "lowest", "is read together with alignment (Wang & Isola 2020)"
    ),
    "alignment": Score(
        lambda z: label_free.alignment(z[:, 0], z[:, 1]),
        "views",
        "lowest",
        "is read together with uniformity: a constant encoder has 0 (Wang & Isola 2020)",
    ),
    "log LID": Score(
        label_free.log_local_dimension,
        "features",
        "highest",
        "is read beside the ranks: features may span many dimensions and be flat locally (Huang et al. 2024)",
    ),
    "DSE": Score(
        dse,
        "tokens",
        "highest",
        f"{_ONE_METHOD} for dense tasks, on {TOKEN_IMAGES} images at most (Dai et al. 2025)",
    ),
    "between-image share": Score(
        between_image_share,
        "tokens",
        None,
        "is the part of the tokens' variance between images: near 1, all places of an image are alike",
    ),
    "position share": Score(
        position_share,
        "tokens",
        None,
        "is the part of the tokens' variance that depends on the place alone: near 1, all images are alike",
    ),
}


_WORTH: dict[str, Callable[[float], float]] = {  # by `Score.best`: higher is better
    "highest": lambda value: value,
    "lowest": lambda value: -value,
    "nearest 1": lambda value: -abs(value - 1),
}


class Rated(NamedTuple):
    """A checkpoint's value of a score; NaN where the score is not defined (a collapsed encoder).

    Attributes:
        value: the score on the whole sample.
        half: half the width of its 95% interval over samples of images.
    """

    value: float
    half: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunScores:
    """The scores of all checkpoints of a run.

    Args:
        title: the run's title.
        images: the number of images in the sample.
        steps: checkpoint -> step of training.
        rated: checkpoint -> score -> value; without the scores of tokens if the encoder gives none.
        notes: remarks on the images and the encoder, one sentence each.
    """

    title: str
    images: int
    steps: dict[str, int]
    rated: dict[str, dict[str, Rated]]
    notes: tuple[str, ...] = ()

    def best(self, score: str) -> tuple[str, list[str]]:
        """The best checkpoint by a score, and the checkpoints that the score does not tell from it.

        A checkpoint under two names (that of an epoch which is also the last) counts once, under its epoch's.

        Args:
            score: a name in `SCORES`.

        Returns:
            The best checkpoint, "" if none has a value or the score has no best direction; and the others whose
            difference from it lies within the intervals of both.
        """
        best = SCORES[score].best
        if best is None:
            return "", []
        worth = _WORTH[best]
        values = {name: self.rated[name][score] for name in self._names()}
        values = {name: rated for name, rated in values.items() if math.isfinite(rated.value)}
        if not values:
            return "", []
        first = max(values, key=lambda name: worth(values[name].value))
        top = values.pop(first)
        near = [
            name
            for name, rated in values.items()
            if abs(worth(rated.value) - worth(top.value)) <= math.hypot(rated.half, top.half)
        ]
        return first, near

    def _names(self) -> list[str]:
        """One name for each step of training, an epoch's where there are two."""
        epochs_last = sorted(self.rated, key=lambda name: name.startswith("epoch-"))
        return list({self.steps[name]: name for name in epochs_last}.values())


def rate(score: Score, z: Tensor, *, repeats: int = 20, seed: int = 0) -> Rated:
    """A score with its interval over samples of images.

    The interval is 1.96 standard deviations of the score on random halves of the rows. For a mean, that is the
    spread of the whole sample's score. (Drawing with replacement would repeat rows and lower every effective
    rank.)

    Args:
        score: the score.
        z: its input, features (N, F), features of views (N, q, F) or tokens (N, T, F).
        repeats: the number of halves.
        seed: of the choice of halves.
    """
    value = _value(score, z)
    generator = torch.Generator().manual_seed(seed)
    halves = [_value(score, z[torch.randperm(len(z), generator=generator)[: len(z) // 2]]) for _ in range(repeats)]
    spread = torch.tensor(halves, dtype=torch.float64).std()
    return Rated(value, _NORMAL * float(spread))


def _value(score: Score, z: Tensor) -> float:
    try:
        return float(score.function(z))
    except UserError:  # not defined: all features are equal, or there are too few eigenvalues
        return math.nan


@torch.inference_mode()
def view_features(
    encoder: nn.Module, images: ImageSet, views: Views, *, count: int = VIEWS, seed: int = 0
) -> Tensor:
    """Features of random views of each image, with the encoder in evaluation mode.

    Args:
        encoder: (B, C, S, S) -> (B, F).
        images: N images.
        views: the random views of training.
        count: q, the number of views of each image.
        seed: of the views.

    Returns:
        (N, q, F) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with evaluating(encoder):
        for rows in torch.split(torch.arange(len(images)), BATCH):
            drawn: list[Tensor] = []
            while len(drawn) < count:
                drawn += views_of(views, batch_for(views, images, rows, generator), generator)
            parts.append(torch.stack([encoder(view).float() for view in drawn[:count]], dim=1))
    return torch.cat(parts)
