"""Counting right answers, and checking labels before any are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankgap.errors import UserError


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers, in [0, 1].

    Args:
        top1: the best-scored class is the label.
        top5: the label is among the five best; None where there are five classes or fewer.
    """

    top1: float
    top5: float | None


class Hits:
    """Right answers counted batch by batch, on the scores' device.

    Args:
        classes: number of classes; top-5 is counted where there are more than five.

    Example:
        >>> hits = Hits(classes=2)
        >>> hits.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> hits.accuracy()
        Accuracy(top1=0.5, top5=None)
    """

    def __init__(self, classes: int) -> None:
        self.depth = 5 if classes > 5 else 1
        self.total = 0
        self._right: Tensor | None = None  # (depth,): at rank 1, at rank 2, ...

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            scores: (N, K), higher is better; -inf is never an answer.
            labels: (N,) int64.
        """
        best = scores.topk(self.depth, dim=1)
        right = (best.indices == labels.to(scores.device)[:, None]) & (best.values > -torch.inf)
        counts = right.sum(0)  # (depth,)
        self._right = counts if self._right is None else self._right + counts
        self.total += len(labels)

    def accuracy(self) -> Accuracy:
        """The shares so far."""
        assert self._right is not None, "no batch was counted"
        within = (self._right.cumsum(0).double() / self.total).tolist()
        return Accuracy(within[0], within[4] if self.depth == 5 else None)


def count_classes(features: Tensor, labels: Tensor) -> int:
    """Number of classes of a labelled set: its largest label plus one.

    Args:
        features: (N, F).
        labels: (N,) int64 in 0..K-1.

    Raises:
        UserError: there are not as many labels as rows, or a label is negative, or only one class occurs.
    """
    if labels.shape != features.shape[:1]:
        raise UserError(f"{len(features)} feature rows but labels of shape {tuple(labels.shape)}: one label a row")
    low, high = (int(v) for v in labels.aminmax())
    if low < 0:
        raise UserError(f"labels are 0 to classes - 1, but one is {low}")
    if low == high:
        raise UserError(f"every label is {low}: a classifier needs at least two classes")
    return high + 1
