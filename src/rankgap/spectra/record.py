"""The values of a pair's record as they are on disk: written to five digits, and checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.spectra.sketch import SketchSize

_DIGITS = 5  # significant digits of a number
# Limits of a number and of a column: squares and tables of pairs must fit.
_LARGEST, _LONGEST = 1e100, 2**14


def plain_value(value: Tensor | SketchSize | int | None) -> list[float] | int | None:
    """A field's value, ready for JSON: a column becomes a list of numbers with five significant digits."""
    if isinstance(value, Tensor):
        return [float(f"{number:.{_DIGITS}g}") for number in value.tolist()]
    return list(value) if isinstance(value, SketchSize) else value


def count(name: str, value: Any, least: int) -> int:
    """A whole number from `least` up."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise UserError(
            f"{name} of a pair's spectra must be a whole number from {least} to 2^53, got {value!r:.40}"
        )
    return value


def sketch_size(name: str, value: Any, least: int) -> SketchSize | None:
    """The size of a sketch to `least` columns or more, or None."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{name} of a pair's spectra must be two numbers of columns or null, got {value!r:.40}")
    columns = count(name, value[0], least)
    return SketchSize(columns, count(name, value[1], columns))


def column(name: str, values: Any) -> Tensor:
    """A column of finite numbers."""
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _LARGEST for v in values
    ):
        raise UserError(f"{name} of a pair's spectra must be a list of finite numbers up to {_LARGEST:g}")
    if len(values) > _LONGEST:
        raise UserError(f"{name} of a pair's spectra must have at most {_LONGEST:,} numbers, got {len(values):,}")
    return torch.tensor([float(v) for v in values], dtype=torch.float64)


def check_columns(columns: Mapping[str, Tensor], rows: int) -> None:
    """Raise `UserError` for columns that no pair of branches can have."""
    paired = any(len(column) for name, column in columns.items() if not name.startswith("spectrum"))
    length = len(columns["spectrum_target"])
    directions = int((columns["spectrum_target"] > 0).sum()) if paired else 0
    for name, column in columns.items():
        spectrum = name.startswith("spectrum")
        wanted = (length if paired else len(column)) if spectrum else directions
        if len(column) != wanted:
            raise UserError(f"{name} of a pair's spectra must have {wanted} numbers, got {len(column)}")
        if spectrum and not 0 < len(column) <= rows:
            raise UserError(f"{name} of {rows} rows must have 1 to {rows} numbers, got {len(column)}")
        if name != "transfer" and (column < 0).any():
            raise UserError(f"{name} of a pair's spectra cannot be negative, got {float(column.min()):g}")
        if spectrum and (column[:-1] < column[1:]).any():
            raise UserError(f"{name} of a pair's spectra must be in descending order")
        if name == "eigenspace_alignment" and (column > 1).any():
            raise UserError(f"{name} of a pair's spectra cannot be above 1, got {float(column.max()):g}")
