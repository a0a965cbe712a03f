"""Weighted nearest neighbours on frozen features.

Shapes: M rows of the bank (the training features), N queries, F feature width, K classes, k neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.errors import UserError
from rankgap.evaluate.accuracy import Accuracy, accuracy_of, check_labels, classes_of_both, count_classes

QUERIES = 1024  # in one block of similarities
BANK = 16_384  # rows of the bank in one block, which then takes 64 MiB in float32


class Neighbours:
    """The weighted kNN classifier of Wu et al. 2018 (section 3.4), with which DINO evaluates.

    The score of class c is the sum of exp(s_i / t) over those of the k most similar bank rows that have label c,
    where s_i is the cosine similarity.

    Args:
        bank: (M, F), any float dtype.
        labels: (M,) int64 in 0..K-1, of the bank.
        k: the number of neighbours that vote; M if the bank is smaller.
        temperature: t.
        classes: K; the largest label plus one by default.

    Raises:
        UserError: there is not one label for each row of the bank, a label is negative or at least `classes`, or
            only one class occurs; or k or the temperature is not positive.

    Example:
        >>> near = Neighbours(torch.eye(2), torch.tensor([0, 1]), k=1)
        >>> near.scores(torch.tensor([[2.0, 0.1]])).argmax(1)
        tensor([0])
    """

    def __init__(
        self, bank: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.1, classes: int | None = None
    ) -> None:
        if k < 1 or temperature <= 0:
            raise UserError(f"expected k >= 1 and temperature > 0, got k={k}, temperature={temperature:g}")
        found = count_classes(bank, labels)
        self.classes = found if classes is None else classes
        if self.classes < found:
            raise UserError(f"expected labels below classes={self.classes}, but the bank has label {found - 1}")
        self.bank = F.normalize(bank.float(), dim=1)
        self.labels = labels.to(bank.device)
        self.k = min(k, len(bank))
        self.temperature = temperature

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The k most similar rows of the bank.

        The bank is searched in blocks whose best rows are merged, so memory is N k plus one block.

        Args:
            queries: (N, F).

        Returns:
            Cosine similarities (N, k) float32, descending, and rows of the bank (N, k) int64.
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
        """The logarithm of each class's votes (N, K) float32, up to a constant per row; -inf without a vote.

        Args:
            queries: (N, F).
        """
        parts = [self._scores(block) for block in torch.split(queries, QUERIES)]
        return torch.cat(parts)

    def _scores(self, queries: Tensor) -> Tensor:
        similarity, rows = self.nearest(queries)
        # Relative to the nearest row, exp cannot overflow at a low temperature.
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
    """Accuracy of the weighted kNN classifier (`Neighbours`) on queries; memory does not grow with the queries.

    Args:
        bank: (M, F), training features.
        bank_labels: (M,) int64.
        queries: (N, F), test features on the same device.
        query_labels: (N,) int64.
        k: the number of neighbours that vote.
        temperature: t.
        classes: K; the largest label of both sets plus one by default.

    Raises:
        UserError: as `Neighbours`; or there is not one label for each query.
    """
    check_labels(queries, query_labels)
    if classes is None:
        classes = classes_of_both(bank_labels, query_labels)
    neighbours = Neighbours(bank, bank_labels, k=k, temperature=temperature, classes=classes)
    return accuracy_of(neighbours.scores, queries, query_labels, classes=classes, block=QUERIES)
