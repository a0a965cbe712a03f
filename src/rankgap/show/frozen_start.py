"""What training made of pretrained weights, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rankgap.show.columns import ERANK_FEATURES, KNN, LINEAR, Column

ROW = "frozen start"  # of a table, beside the trained encoder
_SAID = (KNN, LINEAR, ERANK_FEATURES)
_GENTLER = "Keep the start, or train it more gently (--settings optimizer.encoder_lr=0.01)"


def start_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of a run's pretrained weights before training; empty if it began with random ones."""
    found: Mapping[str, Any] = results.get("start", {})
    return found


def start_in_words(results: Mapping[str, Any]) -> str:
    """The scores of the start; empty if the run began with random weights.

    Example:
        >>> start_in_words({"start": {"knn": 0.612, "erank_features": 10.0}})
        'kNN 61.2, erank features 10.0'
    """
    start = start_of(results)
    return ", ".join(
        f"{_name(column)} {column.cell(start)}" for column in _SAID if start.get(column.key) is not None
    )


def since_start(results: Mapping[str, Any]) -> str:
    """Each score at the start and now; empty if the run began with random weights.

    Example:
        >>> since_start({"knn": 0.648, "start": {"knn": 0.612}})
        'kNN 61.2 -> 64.8'
    """
    start = start_of(results)
    return ", ".join(
        f"{_name(column)} {column.cell(start)} -> {column.cell(results)}"
        for column in _SAID
        if start.get(column.key) is not None and results.get(column.key) is not None
    )


def _name(column: Column) -> str:
    return column.heading.removesuffix(" %")


def start_is_better(results: Mapping[str, Any]) -> str:
    """Why the start is the better encoder, and what to do; empty if it is not.

    kNN decides, or without it the effective rank of the features. A fall within the noise of the test images does
    not count, nor one of less than a twentieth of the rank.

    Example:
        >>> start_is_better({"knn": 0.648, "start": {"knn": 0.612}})
        ''
    """
    start = start_of(results)
    before, after = start.get(KNN.key), results.get(KNN.key)
    if before is not None and after is not None:
        said = "training lowered the kNN accuracy, so the frozen start is the better encoder"
        is_worse = before - after > _noise(before, results)
    else:
        said = "training lowered the effective rank of the features, and no accuracy shows a gain"
        before, after = start.get(ERANK_FEATURES.key), results.get(ERANK_FEATURES.key)
        is_worse = before is not None and after is not None and after < 0.95 * before
    return f"{said}. {_GENTLER}." if is_worse else ""


def _noise(accuracy: float, results: Mapping[str, Any]) -> float:
    """1.96 standard errors of the difference of two such accuracies; 0 if the number of images is unknown."""
    counts = [scores["images"] for scores in results.get("sets", {}).values() if KNN.key in scores]
    return 1.96 * math.sqrt(2 * accuracy * (1 - accuracy) / counts[0]) if counts else 0.0
