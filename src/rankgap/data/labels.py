"""Labels of any kind, renumbered from 0, so that no array is ever as large as a label's value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from rankgap.data.names import shown

_ROWS = 50  # with more rows than this, values that are all different are row names, not classes
_UNLABELLED = -1  # on the Hub


def column_values(column: Any) -> tuple[list[Hashable] | None, str]:
    """The values of a column of labels, one per row; or None, and why they cannot be classes.

    Args:
        column: a `pyarrow.ChunkedArray`.
    """
    kind = column.type
    if pa.types.is_nested(kind):
        return None, "holds more than one value in a row"
    if column.null_count:
        return None, f"is empty in {column.null_count:,} rows"
    if pa.types.is_temporal(kind):
        column = column.cast(pa.string())  # as Python objects, nanoseconds would need pandas
    values: list[Hashable] = column.to_pylist()
    distinct = set(values)
    if any(value != value for value in distinct):
        return None, "is not a number in some rows"
    if _UNLABELLED in distinct and distinct not in ({-1}, {-1, 1}):
        return None, "is -1 in some rows, which stands for no label"
    if distinct == {_UNLABELLED}:
        return None, "is -1 in every row, which stands for no label"
    if len(distinct) == len(values) > _ROWS:
        return None, "has another value in every row"
    return values, ""


def named(values: list[Hashable], names: object) -> Tensor | None:
    """Labels that are positions in a list of names; None if the list does not fit them.

    Args:
        values: the labels.
        names: what the metadata say they are called.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if not all(isinstance(value, int) and 0 <= value < len(names) for value in set(values)):
        return None
    return torch.tensor(values, dtype=torch.int64)


def number(splits: Mapping[str, list[Hashable]], first: str) -> tuple[dict[str, Tensor], list[str]]:
    """Give the labels of several splits one numbering: the first split's in order, then those that others add.

    Returns:
        (N,) int64 labels of each split, and the classes' names.
    """
    order = sorted(set(splits[first]), key=_rank)
    for values in splits.values():
        order += sorted(set(values) - set(order), key=_rank)
    place = {value: i for i, value in enumerate(order)}
    labels = {split: torch.tensor([place[value] for value in values]) for split, values in splits.items()}
    return labels, [shown(v.decode(errors="surrogateescape") if isinstance(v, bytes) else str(v)) for v in order]


def _rank(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value
