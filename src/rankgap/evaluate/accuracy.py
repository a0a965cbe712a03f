"""Accuracy of classifiers, and the checks that labels must pass before they are counted.

Shapes: M training rows, N queries, F feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankgap.errors import UserError


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers, in [0, 1].

    Args:
        top1: the share of rows whose label is the class with the best score.
        top5: the share of rows whose label is among the five best; None if there are five classes or fewer.
    """

    top1: float
    top5: float | None


class Hits:
    """Right answers, counted batch by batch on the scores' device.

    Args:
        classes: K; top-5 is counted if there are more than five.

    Example:
        >>> hits = Hits(classes=2)
        >>> hits.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> hits.accuracy()
        Accuracy(top1=0.5, top5=None)
    """

    def __init__(self, classes: int) -> None:
        self.depth = 5 if classes > 5 else 1
        self.total = 0
        self._right: Tensor | None = None  # (depth,): labels whose class scored first, second, ...

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            scores: (N, K), higher is better; a class with -inf is never an answer.
            labels: (N,) int64.
        """
        best = scores.topk(self.depth, dim=1)
        right = (best.indices == labels.to(scores.device)[:, None]) & (best.values > -torch.inf)
        counts = right.sum(0)  # (depth,)
        self._right = counts if self._right is None else self._right + counts
        self.total += len(labels)

    def accuracy(self) -> Accuracy:
        """The shares of all batches so far."""
        assert self._right is not None, "no batch was counted"
        within = [right / self.total for right in self._right.cumsum(0).tolist()]
        return Accuracy(within[0], within[4] if self.depth == 5 else None)


def accuracy_of(
    scores: Callable[[Tensor], Tensor], queries: Tensor, labels: Tensor, *, classes: int, block: int
) -> Accuracy:
    """A classifier's accuracy on queries, which are scored block by block.

    Args:
        scores: the classifier, (n, F) -> (n, K).
        queries: (N, F).
        labels: (N,) int64, of the queries.
        classes: K.
        block: queries to score at once.
    """
    hits = Hits(classes)
    for part, part_labels in zip(torch.split(queries, block), torch.split(labels, block), strict=True):
        hits.update(scores(part), part_labels)
    return hits.accuracy()


def check_labels(features: Tensor, labels: Tensor) -> None:
    """Raise `UserError` unless there is one label for each row: features (N, F), labels (N,)."""
    if labels.shape != features.shape[:1]:
        raise UserError(f"expected one label for each of {len(features)} rows, got shape {tuple(labels.shape)}")


def count_classes(features: Tensor, labels: Tensor) -> int:
    """The number of classes of a labelled set: its largest label plus one.

    Args:
        features: (N, F).
        labels: (N,) int64 in 0..K-1.

    Raises:
        UserError: there is not one label for each row, a label is negative, or only one class occurs.
    """
    check_labels(features, labels)
    low, high = (int(v) for v in labels.aminmax())
    if low < 0:
        raise UserError(f"expected labels from 0 to classes - 1, but one is {low}")
    if low == high:
        raise UserError(f"every label is {low}: a classifier needs at least two classes")
    return high + 1


def classes_of_both(labels: Tensor, others: Tensor) -> int:
    """The number of classes of two sets, from their labels (M,) and (N,): the largest label plus one."""
    return 1 + int(torch.maximum(labels.max(), others.max().to(labels.device)))
