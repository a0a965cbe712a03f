"""The columns of every table of results: what each number is called, where it is found, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def written(number: float, form: str = ".1f") -> str:
    """A number as tables, pictures and pages show it: a dash if it is not finite, and never -0.0.

    Example:
        >>> written(-0.04), written(-0.004, "+.2f"), written(1234.5, ",.0f"), written(math.nan)
        ('0.0', '+0.00', '1,234', '-')
    """
    sign = form[: form.startswith("+")]
    return format(float(number), f"{sign}z{form.removeprefix(sign)}") if math.isfinite(number) else "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a run's results.

    Args:
        heading: heading of the column.
        key: key of the number in `results.json`.
        form: a format specification, as `format` takes it.
        factor: what the number is multiplied by before it is written: 100 turns a share into a percentage.

    Example:
        >>> KNN.cell({"knn": 0.3534}), KNN.cell({}), SPEED.text(1234.5)
        ('35.3', '-', '1,234')
    """

    heading: str
    key: str
    form: str = ".1f"
    factor: float = 1.0

    def text(self, number: float | None) -> str:
        """A number as the tables write it; a dash where it is None or not finite."""
        return "-" if number is None else written(self.factor * number, self.form)

    def cell(self, results: Mapping[str, Any]) -> str:
        """A run's cell in this column; a dash where its results lack the number."""
        return self.text(results.get(self.key))

    def scaled(self, results: Mapping[str, Any]) -> float:
        """The number as the tables show it, before it is rounded; NaN where the results lack it."""
        number = results.get(self.key)
        return math.nan if number is None else self.factor * number


KNN = Column("kNN %", "knn", factor=100)
LINEAR = Column("linear %", "linear", factor=100)
ERANK_ONLINE = Column("erank online", "erank_online")
ERANK_TARGET = Column("erank target", "erank_target")
RANK_DIFFERENCE = Column("rank difference", "rank_difference")
ERANK_FEATURES = Column("erank features", "erank_features")
SPEED = Column("images/s", "images_per_second", form=",.0f")

RESULTS = (KNN, LINEAR, ERANK_ONLINE, ERANK_TARGET, RANK_DIFFERENCE, ERANK_FEATURES, SPEED)
CONVENTION = (
    "erank is the effective rank: the exponential of the entropy of the eigenvalues of one batch's uncentred "
    "correlation (online view 1, target view 2). The rank difference is the target's minus the online's. erank "
    "features is the same for the encoder's features of the training images."
)


def protocols(results: Mapping[str, Any]) -> list[str]:
    """How each accuracy and rank in a run's columns was measured, a line for each.

    Example:
        >>> protocols({"knn": 0.5, "protocol": {"knn": "k 20", "linear": "L-BFGS"}})
        ['kNN %: k 20']
    """
    found = dict(results.get("protocol", {}))
    held = (results, *dict(results.get("sets", {})).values())  # accuracies on further sets have no column
    shown = [column for column in RESULTS if column.key in found and any(column.key in each for each in held)]
    return [f"{column.heading}: {found[column.key]}" for column in shown]


def plus_minus(middle: float, half: float, form: str = ".1f") -> str:
    """A mean and its standard deviation, or a middle and the half width of its interval.

    Example:
        >>> plus_minus(0.5, 0.125), plus_minus(3, 0.25, "+.2f")
        ('0.5 ± 0.1', '+3.00 ± 0.25')
    """
    return f"{written(middle, form)} ± {written(half, form.lstrip('+'))}"
