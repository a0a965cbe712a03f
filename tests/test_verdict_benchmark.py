"""The table of verdicts: what counts as right, and its script on small work."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.verdicts.__main__ import Standard, section
from benchmarks.verdicts.cases import CASES, FAULTS, Bench, Case
from benchmarks.verdicts.runs import Judged, Truth, run_one
from rankgap.data import load_data
from rankgap.model.methods import METHODS
from rankgap.watch.verdict import Outcome, Use, Verdict


def judged(kind: Outcome | None, knn: float, features: float = 10.0, outputs: float = 20.0) -> Judged:
    verdict = None if kind is None else Verdict(kind=kind, outputs=Use(rank=outputs, of=64))
    return Judged("byol", False, 0, 100, Truth(knn, features, outputs), verdict, [])


START = Truth(0.3, 1.3, 50.0)
STANDARD = Standard(START, [judged("healthy", 0.5, outputs=30.0), judged("healthy", 0.7, outputs=60.0)])


@pytest.mark.parametrize(
    ("run", "right"),
    [
        (judged("healthy", 0.6), True),
        (judged("healthy", 0.2), True),  # worse than no training, but with its dimensions: no collapse
        (judged("healthy", 0.29, features=2.9), False),
        (judged("collapsed", 0.29, features=2.9), True),
        (judged("collapsed", 0.6), False),
        (judged("collapsed", 0.6, outputs=1.4), True),
        (judged("shrinking", 0.6, outputs=14.0), True),
        (judged("shrinking", 0.6, outputs=16.0), False),
        (judged("shrinking", 0.44), True),
        (judged(None, 0.0, 0.0, math.nan), True),
        (judged(None, 0.6), False),
    ],
)
def test_a_verdict_is_right_or_wrong(run: Judged, right: bool) -> None:
    assert STANDARD.knn == pytest.approx(0.45)
    assert STANDARD.outputs == 15
    assert STANDARD.right(run) is right


def test_the_table_counts_what_was_missed_and_who_was_accused() -> None:
    missed, accused = judged("healthy", 0.2, features=1.1), replace(judged("collapsed", 0.6), title="dino")
    bench = Bench(name="b", data="digits", limit=None, epochs=1, batch_size=8)
    text = section(bench, [judged("healthy", 0.6), missed, accused], {0: STANDARD})
    assert "collapsed encoders: 1, of which called healthy: 1 (byol, seed 0)" in text
    assert "false alarms: 1 (dino, seed 0)" in text
    assert text.count("**no**") == 2


def test_every_row_and_twelve_faults_are_tried() -> None:
    assert len(FAULTS) == 12
    assert [case.title for case in CASES[:-12]] == list(METHODS)
    assert len({case.title for case in CASES}) == len(CASES)


def test_a_case_with_images_of_its_own_runs_once(tmp_path: Path) -> None:
    bench = Bench(name="small", data="digits", limit=64, epochs=1, batch_size=32)
    images, _ = load_data("digits")
    (case,) = (each for each in CASES if each.title == "simsiam, one image repeated")
    assert isinstance(case, Case)
    found = run_one(case, bench, 0, tmp_path, images)
    assert found.verdict is not None
    assert found.verdict.kind == "collapsed"  # equal images have equal features
    assert found.verdict.features is not None
    assert found.verdict.features.rank == pytest.approx(1.0)
    assert 0 < found.truth.knn < 1
    assert run_one(case, bench, 0, tmp_path, images) == found
