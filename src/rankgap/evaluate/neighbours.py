"""Weighted nearest neighbours on frozen features.

Shapes: M rows of the bank, N queries, F feature width, K classes, k neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.errors import UserError
from rankgap.evaluate.accuracy import Accuracy, Hits, count_classes

QUERIES = 1024  # rows of one block of similarities
BANK = 16_384  # columns of one block; 64 MiB in float32 with the above


class Neighbours:
    """The weighted kNN classifier of Wu et al. 2018 (section 3.4), as DINO evaluates.

    Class c of a query gets sum exp(s_i / t) over those of the k most similar bank rows that have label c;
    s_i is the cosine similarity.

    Args:
        bank: (M, F), any float dtype.
        labels: (M,) int64 in 0..K-1, of the bank.
        k: neighbours that vote; M where the bank is smaller.
        temperature: t.
        classes: K; the largest label plus one by default.

    Raises:
        UserError: labels of another length, negative or of one class; k or temperature not positive.

    Example:
        >>> near = Neighbours(torch.eye(2), torch.tensor([0, 1]), k=1)
        >>> near.scores(torch.tensor([[2.0, 0.1]])).argmax(1)
        tensor([0])
    """

    def __init__(
        self, bank: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.1, classes: int | None = None
    ) -> None:
        if k < 1 or temperature <= 0:
            raise UserError(f"kNN takes k >= 1 and temperature > 0, not k={k}, temperature={temperature:g}")
        found = count_classes(bank, labels)
        self.classes = found if classes is None else classes
        if self.classes < found:
            raise UserError(f"the bank has label {found - 1}, more than {self.classes} classes allow")
        self.bank = F.normalize(bank.float(), dim=1)
        self.labels = labels.to(bank.device)
        self.k = min(k, len(bank))
        self.temperature = temperature

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The k most similar rows of the bank.

        The bank is passed in blocks whose best are merged: memory is N k plus one block.

        Args:
            queries: (N, F).

        Returns:
            cosine similarities (N, k) float32, descending, and rows of the bank (N, k) int64.
        """
        queries = F.normalize(queries.float(), dim=1)
        values = queries.new_empty(len(queries), 0)
        rows = self.labels.new_empty(len(queries), 0)
        for start in range(0, len(self.bank), BANK):
            block = queries @ self.bank[start : start + BANK].T
            best = block.topk(min(self.k, block.shape[1]), dim=1)
            values = torch.cat([values, best.values], dim=1)
            rows = torch.cat([rows, best.indices + start], dim=1)
            if values.shape[1] > self.k:
                values, kept = values.topk(self.k, dim=1)
                rows = rows.gather(1, kept)
        return values, rows

    def scores(self, queries: Tensor) -> Tensor:
        """Logarithm of each class's votes (N, K) float32, up to a constant a row; -inf where none voted.

        Args:
            queries: (N, F).
        """
        parts = [self._scores(block) for block in torch.split(queries, QUERIES)]
        return torch.cat(parts)

    def _scores(self, queries: Tensor) -> Tensor:
        similarity, rows = self.nearest(queries)
        # Relative to the nearest, exp cannot overflow at a low temperature.
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros(len(queries), self.classes)
        return votes.scatter_add_(1, self.labels[rows], weights).log_()


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
    classes: int | None = None,
) -> Accuracy:
    """Accuracy of the weighted kNN classifier (`Neighbours`) on queries; memory does not grow with their number.

    Args:
        bank: (M, F), training features.
        bank_labels: (M,) int64.
        queries: (N, F), test features on the same device.
        query_labels: (N,) int64.
        k: neighbours that vote.
        temperature: of the votes.
        classes: number of classes; from both sets' labels by default.

    Raises:
        UserError: see `Neighbours`; or the queries' labels are of another length.
    """
    if query_labels.shape != queries.shape[:1]:
        raise UserError(f"{len(queries)} queries but labels of shape {tuple(query_labels.shape)}: one label a row")
    if classes is None:
        classes = 1 + int(torch.maximum(bank_labels.max(), query_labels.max().to(bank_labels.device)))
    neighbours = Neighbours(bank, bank_labels, k=k, temperature=temperature, classes=classes)
    hits = Hits(classes)
    for part, labels in zip(torch.split(queries, QUERIES), torch.split(query_labels, QUERIES), strict=True):
        hits.update(neighbours.scores(part), labels)
    return hits.accuracy()
