"""What is measured of a trained encoder: layers of one width, and the classes of places in mosaics.

Shapes: N images, B in a batch, C channels, T places of a feature map, D columns, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.what_ranks_miss.data import CLASSES, mosaics, per_place
from rankgap.data import ImageSet
from rankgap.evaluate import dense_structure, extract_features, knn, linear_probe, log_local_dimension
from rankgap.evaluate.linear import fit_lbfgs
from rankgap.model.backbones import Encoder, TokenEncoder
from rankgap.run.plan import Plan
from rankgap.spectra import effective_rank, rankme

STAGES = 4
GRIDS = {
    16: (2, 4),
    32: (2, 2),
    64: (1, 2),
    128: (1, 1),
}  # channels -> places, so that every stage has 128 columns


class Stage(nn.Module):
    """A stage of a ResNet, averaged over as many places as give 128 columns."""

    def __init__(self, encoder: Encoder, stage: int) -> None:
        super().__init__()
        self.network: Any = encoder.network
        self.stage = stage

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, 128)."""
        made: Tensor = self.network.forward_intermediates(images, intermediates_only=True)[self.stage]
        return F.adaptive_avg_pool2d(made, GRIDS[made.shape[1]]).flatten(1)


def features_of(encoder: nn.Module, images: ImageSet, plan: Plan, size: int | None = None) -> Tensor:
    """Features (or tokens) of images, normalised as in the run."""
    train = plan.train
    return extract_features(encoder, images, size=size or plan.size, mean=train.mean, std=train.std).features


def accuracies(encoder: nn.Module, bank: ImageSet, test: ImageSet, plan: Plan) -> dict[str, float]:
    """Accuracy on `test` of kNN and of a linear probe whose labels are those of `bank`."""
    known, asked = features_of(encoder, bank, plan), features_of(encoder, test, plan)
    assert bank.labels is not None
    assert test.labels is not None
    rows = (known, bank.labels, asked, test.labels)
    return {"knn": knn(*rows).top1, "linear": linear_probe(*rows).top1}


def layers(plan: Plan, bank: ImageSet, test: ImageSet) -> list[dict[str, float]]:
    """RankMe, effective rank and accuracy of each stage, at 128 columns each."""
    encoder = plan.model.encoder()
    assert isinstance(encoder, Encoder)
    found = []
    for number in range(1, STAGES + 1):
        stage = Stage(encoder, number)
        z = features_of(stage, bank, plan)
        ranks = {"rankme": float(rankme(z)), "erank": float(effective_rank(z))}
        found.append({"stage": number, **ranks, "log_lid": float(log_local_dimension(z))})
        found[-1] |= accuracies(stage, bank, test, plan)
    return found


def dense(plan: Plan, bank: ImageSet, test: ImageSet) -> dict[str, float]:
    """Accuracy and mean IoU of a linear classifier that names the class at each place of a mosaic."""
    encoder = plan.model.encoder()
    assert isinstance(encoder, Encoder)
    rows = []
    for images in (bank, test):
        pieces, classes = mosaics(images)
        tokens = features_of(TokenEncoder(encoder), pieces, plan, size=2 * plan.size)  # (M, T, D)
        rows.append((tokens.flatten(0, 1), per_place(classes, round(tokens.shape[1] ** 0.5))))
    (known, labels), (asked, wanted) = rows
    named = fit_lbfgs(known, labels, classes=CLASSES).scores(asked).argmax(1)
    counts = torch.zeros(CLASSES, CLASSES).index_put_((wanted, named), torch.tensor(1.0), accumulate=True)
    right = counts.diag()
    return {
        "token_accuracy": float(right.sum() / counts.sum()),
        "miou": float((right / (counts.sum(0) + counts.sum(1) - right)).mean()),
    }


def structure(plan: Plan, images: ImageSet) -> dict[str, float]:
    """The two terms of DSE on an image set."""
    encoder = plan.model.encoder()
    assert isinstance(encoder, Encoder)
    found = dense_structure(features_of(TokenEncoder(encoder), images, plan))
    return {"separability": float(found.separability), "dimension": float(found.dimension)}
