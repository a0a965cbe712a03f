"""The verdict on a whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankgap.run.reader import plain, read
from rankgap.watch.doctor import Thresholds
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading
from rankgap.watch.verdict import Use, Verdict, judge


def run_of(target: Sequence[float], online: Sequence[float] | None = None, **more: Any) -> list[Reading]:
    """A run whose readings have these ranks."""
    online = target if online is None else online
    return [
        Reading(step, erank_online=p, erank_target=t, rank_difference=t - p, spread=0.5, full_rank=64)._replace(
            **more
        )
        for step, (t, p) in enumerate(zip(target, online, strict=True))
    ]


def falling(start: float, end: float, count: int = 40) -> list[float]:
    """Ranks that fall by one factor from reading to reading."""
    return [start * (end / start) ** (i / (count - 1)) for i in range(count)]


def one_way_at_the_end() -> list[Reading]:
    *before, last = run_of([30.0] * 40, [10.0] * 40)
    return [*before, last._replace(spread=0.01, spread_target=0.01)]


TOKENS = {"position_share_target": 0.2, "image_rank_target": 5.0, "images": 32}
POSITIONAL = {"position_share_target": 0.97, "image_rank_target": 1.1}

RUNS: list[tuple[str, Callable[[], list[Reading]], str]] = [
    ("a rank that stays", lambda: run_of([30.0] * 40, [10.0] * 40), "healthy"),
    ("a fall that the rank difference halts", lambda: run_of([60.0] * 5 + [9.0] * 35, [4.0] * 40), "healthy"),
    ("a fall against a rank difference", lambda: run_of(falling(60, 6), [2.0] * 40), "healthy"),
    ("a slow fall without a difference", lambda: run_of(falling(60, 20)), "shrinking"),
    ("few dimensions left", lambda: run_of([60.0] * 5 + [2.0] * 35), "shrinking"),
    ("one dimension left", lambda: run_of([60.0] * 5 + [1.2] * 35), "collapsed"),
    ("a target below the online branch", lambda: run_of([10.0] * 40, [20.0] * 40), "shrinking"),
    ("outputs that all point one way", lambda: run_of([3.0] * 40, spread=0.001), "collapsed"),
    ("uniform assignment", lambda: run_of([3.0] * 40, assignment=0.999, usage=0.999), "collapsed"),
    ("one prototype", lambda: run_of([3.0] * 40, assignment=0.01, usage=0.01), "collapsed"),
    ("one direction from the first step on", lambda: run_of([1.0] * 40), "collapsed"),
    ("a collapse in a run of three readings", lambda: run_of([1.0] * 3, spread=0.0), "collapsed"),
    ("one direction in the last reading", lambda: run_of([30.0] * 39 + [1.1], [10.0] * 40), "collapsed"),
    ("a collapse that four readings see", lambda: run_of([10.0, 1.8, 1.2, 1.3], full_rank=256), "collapsed"),
    ("three directions in the last reading", lambda: run_of([30.0] * 39 + [3.0], [10.0] * 40), "healthy"),
    ("outputs that all point one way in the last reading", one_way_at_the_end, "collapsed"),
    ("one branch that is constant", lambda: run_of([9.0] * 40, spread_target=0.0), "collapsed"),
    ("tokens that differ by position", lambda: run_of([9.0] * 40, [4.0] * 40, **POSITIONAL), "collapsed"),
    ("tokens that differ by image", lambda: run_of([9.0] * 40, [4.0] * 40, **TOKENS), "healthy"),
    ("a fall with a difference near 0", lambda: run_of(falling(60, 6), falling(60.5, 6)), "shrinking"),
    ("a late fall", lambda: run_of([30.0] * 30 + [9.0] * 20, [4.0] * 50), "shrinking"),
    ("a late fall to one direction", lambda: run_of([30.0] * 30 + [1.3] * 20, [1.0] * 50), "collapsed"),
    ("five noisy readings of many", lambda: run_of([30.0] * 295 + [1.9] * 5, [10.0] * 300), "healthy"),
    ("an alarm that has passed", lambda: run_of([60.0] * 5 + [2.0] * 10 + [20.0] * 25, [9.0] * 40), "healthy"),
]


@pytest.mark.parametrize(("history", "kind"), [run[1:] for run in RUNS], ids=[run[0] for run in RUNS])
def test_a_run_is_judged_by_how_it_ends(history: Callable[[], list[Reading]], kind: str) -> None:
    verdict = judge(history(), Use(rank=20.0, of=128))
    assert verdict.kind == kind
    assert bool(verdict.saw and verdict.cause and verdict.knob) == (kind != "healthy")
    assert str(verdict).startswith(f"{kind}: the outputs use ")


@pytest.mark.parametrize(
    ("steps", "caveat"), [(1, "too early to tell, after 1 step"), (39, "after 39 steps"), (40, "")]
)
def test_a_run_of_few_steps_is_not_called_healthy_without_a_caveat(steps: int, caveat: str) -> None:
    verdict = judge(run_of([30.0] * steps, [10.0] * steps))
    assert verdict.kind == "healthy"
    assert bool(verdict.caveat) == bool(caveat)
    assert str(verdict).lower().endswith(f"{caveat}." if caveat else " of 64 dimensions.")
    fallen = judge(run_of([1.0] * steps, [1.0] * steps))
    assert fallen.kind == "collapsed"
    assert not fallen.caveat


def test_outputs_that_are_not_finite_are_a_collapse_with_its_own_cause() -> None:
    verdict = judge([*run_of([30.0] * 10, [9.0] * 10), Reading(10, finite=False)])
    assert verdict.kind == "collapsed"
    assert "learning rate" in verdict.cause


def test_features_that_are_all_alike_are_a_collapse_whatever_the_readings_say() -> None:
    history = run_of([30.0] * 40, [10.0] * 40)
    assert judge(history, Use(rank=1.3, of=128)).kind == "healthy"  # an untrained encoder's is no higher
    for rank in (1.0, None):
        verdict = judge(history, Use(rank=rank, of=128))
        assert verdict.kind == "collapsed"
        assert verdict.saw == "the encoder gives all images nearly the same features"
        assert "a run that is too short" in verdict.cause  # random weights give similar images similar features


def test_the_sentence_says_how_many_dimensions_of_how_many() -> None:
    history = run_of([60.0] * 5 + [1.04] * 35)
    said = str(judge(history, Use(rank=10.4, of=128)))
    assert said.startswith("collapsed: the outputs use 1 of 64 dimensions, the features 10 of 128. The")
    assert "The target's effective rank is 1.04 after an early peak of 60.0. Likely cause: " in said
    assert str(Use(rank=3.44, of=9)) == "3.4 of 9 dimensions"
    assert str(Use(rank=None, of=9)) == "none of 9 dimensions"


def test_a_monitor_s_verdict_has_the_monitor_s_thresholds() -> None:
    torch.manual_seed(0)
    z = torch.ones(8) + 0.3 * torch.randn(64, 8)
    for constant, kind in ((0.02, "healthy"), (0.5, "collapsed")):
        monitor = RankMonitor(thresholds=Thresholds(constant=constant), strict=True)
        monitor.update(z, z @ torch.diag(torch.linspace(1, 2, 8)))
        assert monitor.verdict().kind == kind


def test_of_tokens_the_images_dimensions_are_said_too() -> None:
    verdict = judge(run_of([30.0] * 40, [10.0] * 40, **TOKENS), Use(rank=20.0, of=128))
    assert (
        str(verdict)
        == "healthy: the outputs use 30 of 64 dimensions, the images' means 5 of 32, the features 20 of 128."
    )
    assert read(Verdict, plain(verdict), "results.json") == verdict
    assert judge(run_of([30.0] * 40)).images is None


def test_a_run_without_a_finite_reading_uses_no_dimensions() -> None:
    assert str(judge([Reading(0, finite=False)])).startswith("collapsed: the outputs use no dimensions. Some out")


def test_a_few_readings_that_are_not_finite_hide_no_rank() -> None:
    lost = [Reading(step, finite=False) for step in range(30, 39)]
    verdict = judge([*run_of([30.0] * 30, [10.0] * 30), *lost, *run_of([30.0] * 40, [10.0] * 40)[39:]])
    assert str(verdict) == "healthy: the outputs use 30 of 64 dimensions."
    falls = run_of(falling(60, 20))
    falls[-3:-1] = [Reading(step, finite=False) for step in (37, 38)]
    assert judge(falls).kind == "shrinking"


def test_the_readings_that_show_a_fault_give_the_rank() -> None:
    """At readings so sparse, a collapse in the first epoch is seen by few: siamese on photographs did so."""
    verdict = judge(run_of([30.0] * 39 + [1.2], [10.0] * 40))
    assert verdict.outputs.rank == 1.2
    assert "The target's effective rank is 1.20 after an early peak of 30.0." in str(verdict)


def test_a_verdict_is_written_and_read_back() -> None:
    for verdict in (judge(run_of([1.0] * 9)), judge(run_of([9.0] * 9, [2.0] * 9), Use(rank=None, of=4))):
        assert read(Verdict, plain(verdict), "results.json") == verdict


@given(
    st.lists(st.tuples(st.floats(1, 64), st.floats(1, 64)), min_size=1, max_size=60),
    st.one_of(st.none(), st.floats(1, 128)),
)
def test_any_history_has_a_verdict(ranks: list[tuple[float, float]], features: float | None) -> None:
    target, online = zip(*ranks, strict=True)
    verdict = judge(run_of(target, online), Use(rank=features, of=128))
    assert verdict.outputs.rank is not None
    assert 1 <= verdict.outputs.rank <= 64
    # One direction at the end is never called healthy.
    assert judge([*run_of(target, online), *run_of([1.0] * 5)]).kind == "collapsed"


def test_readings_that_lack_numbers_are_no_error() -> None:
    verdict = judge([Reading(0), Reading(1)])
    assert (verdict.kind, verdict.outputs) == ("collapsed", Use(rank=None, of=0))


def test_a_model_s_collapse_is_found_from_its_outputs_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    monitor = RankMonitor(every=1)
    for step in range(40):
        rows = torch.randn(32, 16, generator=generator)
        along = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
        out = rows * 0.7**step + along
        monitor.update(out, out)
    verdict = judge(monitor.history)
    assert verdict.kind == "collapsed"
    assert verdict.outputs.of == 16
    assert judge(monitor.history, thresholds=Thresholds(constant=-1)).cause.startswith("no rank difference")


def test_two_directions_of_many_are_few_and_of_four_are_not() -> None:
    assert judge(run_of([1.9] * 40, full_rank=64.0)).kind == "shrinking"
    assert judge(run_of([1.9] * 40, full_rank=4.0)).kind == "healthy"


def test_the_highest_rank_that_rows_can_have_is_kept() -> None:
    monitor = RankMonitor(every=1)
    monitor.update(torch.randn(5, 9), torch.randn(5, 9))
    assert monitor.history[0].full_rank == 5
    assert math.isnan(Reading(0).full_rank)
