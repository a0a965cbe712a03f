"""The contents of `results.json`: their types, and how they are read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from rankgap.errors import UserError
from rankgap.run.files import replace_file
from rankgap.run.reader import read, read_json
from rankgap.watch.doctor import Kind
from rankgap.watch.verdict import Verdict

_STRICT = ConfigDict(extra="allow", allow_inf_nan=False)


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
class Alarm(TypedDict):
    """A `Diagnosis`, by the names of its fields."""

    kind: Kind
    step: int
    saw: str
    cause: str
    knob: str


@with_config(_STRICT)
class Scores(TypedDict, total=False):
    """The scores of an encoder on one evaluation set. Accuracies are shares in [0, 1]."""

    images: int
    knn: float | None
    knn_top5: float | None
    linear: float | None
    linear_top5: float | None
    linear_sgd: float | None
    linear_sgd_top5: float | None


@with_config(_STRICT)
class Evaluation(Scores, total=False):
    """The results of `evaluate` for a branch: the first set's scores, and the scores of all sets."""

    branch: str
    erank_features: float | None
    rankme_features: float | None
    sets: dict[str, Scores]
    protocol: dict[str, str]
    notes: list[str]


@with_config(_STRICT)
class Results(Evaluation, total=False):
    """The results of a run: last reading, speed, alarms, verdict, and the evaluation of both branches."""

    loss: float | None
    erank_online: float | None
    erank_target: float | None
    rank_difference: float | None
    erank_online_features: float | None
    erank_target_features: float | None
    seconds: float | None
    images_per_second: float | None
    views_per_second: float | None
    threads: int
    verdict: dict[str, Any]  # a `Verdict`, as `read_results` checks
    alarms: list[Alarm]
    start: Evaluation  # of the pretrained weights, before training
    target_branch: Evaluation


def read_results(file: Path) -> dict[str, Any]:
    """The contents of a `results.json`; empty if there is no such file.

    Raises:
        UserError: the file holds something else; the message names the key and what it should hold.
    """
    if not file.is_file():
        return {}
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} should hold the results of a run by name, got {type(values).__name__}")
    found = dict(read(Results, values, str(file)))
    if "verdict" in found:
        read(Verdict, found["verdict"], f"{file}.verdict")
    return found


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write a `results.json`; numbers that are not finite become null."""
    replace_file(file, json.dumps(_clean(results), indent=2).encode() + b"\n")


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _clean(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
