"""Spectra to design on: the default, and those that a user gives as numbers.

Shapes: R = min(N, D) directions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rankgap.errors import UserError

_DIRECTIONS = 256  # of the default reference spectrum
MOST_DIRECTIONS = 2**13  # memory grows with their square
_LEAST = 1e-30  # singular value above 0; squares and their inverses then fit a float64
_BYTES = 2**22  # of a file of numbers


class Reference(NamedTuple):
    """A spectrum to design on.

    Attributes:
        name: where it comes from, as tables and figures show it.
        x: singular values of Z over sqrt(N) (R,), descending, float64.
        rows: N.
        columns: D.
    """

    name: str
    x: Tensor
    rows: int
    columns: int


def reference_spectrum(source: str | None = None) -> Reference:
    """A spectrum to design on, from numbers; a run builds its own `Reference`.

    Args:
        source: a file of numbers, or numbers such as "4,3,2,1": singular values over sqrt(N). By default, 256
            batch-normed columns in a batch of 256, whose eigenvalues fall as 1/j, as those of healthy features do
            (alpha-ReQ: Agrawal et al. 2022).

    Raises:
        UserError: the source is neither numbers nor a file of numbers, or the numbers are not a spectrum.
    """
    if source is None:
        energy = 1 / torch.arange(1, _DIRECTIONS + 1, dtype=torch.float64)
        x = (_DIRECTIONS * energy / energy.sum()).sqrt()
        return Reference(f"{_DIRECTIONS} directions, eigenvalues 1/j", x, _DIRECTIONS, _DIRECTIONS)
    try:
        name, numbers = "given", _numbers(source)
    except ValueError:
        name, numbers = Path(source).name, _of_file(source)
    x = torch.tensor(numbers, dtype=torch.float64)
    if (
        not 2 <= len(x) <= MOST_DIRECTIONS
        or not ((x == 0) | ((x >= _LEAST) & (x <= 1 / _LEAST))).all()
        or not x.any()
    ):
        raise UserError(
            f"--spectrum {source!r:.60}: expected 2 to {MOST_DIRECTIONS:,} finite numbers at or above 0, not all "
            f"0 (the others from {_LEAST:g} to {1 / _LEAST:g}); got {x[:4].tolist()}"
        )
    return Reference(name, x.sort(descending=True).values, len(x), len(x))


def _numbers(text: str) -> list[float]:
    """The numbers of a text, separated by commas or spaces; raises `ValueError` for anything else."""
    return [float(part) for part in re.split(r"[\s,]+", text.strip(" \n\t,[]"))]


def _of_file(source: str) -> list[float]:
    expected = f"--spectrum {source!r:.80}: expected a run folder, a file of numbers, or numbers such as 4,3,2,1"
    try:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"{expected}; there is no such file")
        if path.stat().st_size > _BYTES:
            raise UserError(f"{expected}; the file has more than {_BYTES:,} bytes")
        return _numbers(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{expected}; {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{expected}; {error}") from error
