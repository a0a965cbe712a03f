"""The types of the contents of `results.json`. Numbers that are not finite are null."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from rankgap.watch.doctor import Kind

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
    verdict: dict[str, Any]  # a `Verdict`, as `RunFolder.results` checks
    alarms: list[Alarm]
    start: Evaluation  # of the pretrained weights, before training
    target_branch: Evaluation
