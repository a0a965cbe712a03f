"""The readings and spectra of a run on disk, step by step: `metrics.csv` and `spectra.jsonl`."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rankgap.errors import UserError
from rankgap.run.files import replace_file, writing
from rankgap.run.reader import read_text
from rankgap.spectra.pair import PairSpectrum

READ_COLUMNS = ("step", "epoch", "loss", "erank_online", "erank_target", "rank_difference")  # by everyone
_LONGEST_HEAD = 2**12  # characters; a device has no end of line
_MOST_STEPS = 2**53  # float64 holds whole numbers exactly up to here


class History(NamedTuple):
    """The readings and spectra of a run.

    Attributes:
        metrics: the columns of `metrics.csv`.
        spectra: the records of `spectra.jsonl`.
    """

    metrics: dict[str, list[float]]
    spectra: list[PairSpectrum]

    def before(self, step: int) -> History:
        """The part before a step."""
        count = bisect.bisect_left(self.metrics.get("step", []), step)
        return History(
            {name: values[:count] for name, values in self.metrics.items()},
            [pair for pair in self.spectra if pair.step is not None and pair.step < step],
        )

    def write(self, metrics_file: Path, spectra_file: Path) -> None:
        """Write both files, in place of what they held."""
        names = list(self.metrics)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*self.metrics.values(), strict=True)]
        head = [",".join(names) + "\n"] if rows else []
        replace_file(metrics_file, "".join([*head, *map(_row, rows)]).encode())
        replace_file(spectra_file, "".join(map(_line, self.spectra)).encode())


def read_metrics(file: Path) -> dict[str, list[float]]:
    """The columns of a `metrics.csv` as numbers, NaN where one is not finite; empty before the first reading.

    A last row that is only half written is left out.

    Raises:
        UserError: the file holds something else; the message names what is wrong.
    """
    if not file.is_file():
        return {}
    whole = read_text(file).rpartition("\n")[0].splitlines()
    names = whole[0].split(",") if whole else []
    try:
        rows = [[_number(value) for value in line.split(",")] for line in whole[1:]]
    except ValueError as error:
        raise UserError(f"{file} is not a table of numbers: {error}") from error
    if missing := [name for name in READ_COLUMNS if rows and name not in names]:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}")
    if ragged := next((i for i, row in enumerate(rows, start=2) if len(row) != len(names)), None):
        raise UserError(f"{file} has the wrong number of values in line {ragged}: delete it")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    steps = columns.get("step", [])
    if len(columns) < len(names) or not _are_steps(steps):
        raise UserError(f"{file} should have unique column names, and steps that increase from 0")
    return columns


def add_metrics(file: Path, metrics: Mapping[str, float]) -> None:
    """Append a row to a `metrics.csv`: a reading's numbers, the step first. The first row names the columns.

    Columns that an earlier version of rankgap has begun stay as they are.
    """
    with writing(file), file.open("a+", encoding="utf-8") as table:
        table.seek(0)
        if head := table.readline(_LONGEST_HEAD).rstrip("\n"):
            table.write(_row({name: metrics.get(name, math.nan) for name in head.split(",")}))
        else:
            table.write(",".join(metrics) + "\n" + _row(metrics))


def read_spectra(file: Path) -> list[PairSpectrum]:
    """The records in the complete lines of a `spectra.jsonl`; an empty list if there is no such file.

    Raises:
        UserError: the file holds something else; the message names what is wrong.
    """
    if not file.is_file():
        return []
    whole = read_text(file).rpartition("\n")[0].splitlines()
    try:
        found = [PairSpectrum.from_plain(json.loads(line)) for line in whole]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a list of spectra: {error}") from error
    if not _are_steps([math.nan if pair.step is None else pair.step for pair in found]):
        raise UserError(f"{file} should hold spectra at steps that increase from 0")
    return found


def add_spectra(file: Path, pair: PairSpectrum) -> None:
    """Append the spectra of a step to a `spectra.jsonl`, by name and to five digits."""
    with writing(file), file.open("a", encoding="utf-8") as lines:
        lines.write(_line(pair))


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.nan


def _row(metrics: Mapping[str, float]) -> str:
    return ",".join(f"{value:.8g}" if name != "step" else f"{value:.0f}" for name, value in metrics.items()) + "\n"


def _line(pair: PairSpectrum) -> str:
    return json.dumps(pair.plain()) + "\n"


def _are_steps(numbers: Sequence[float]) -> bool:
    """Whether numbers are steps: whole numbers from 0 that increase."""
    whole = all(0 <= number < _MOST_STEPS and number == int(number) for number in numbers)
    return whole and all(a < b for a, b in itertools.pairwise(numbers))
