from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankgap.watch.cadence import FREE, READINGS, SHARE, Cadence, interval
from rankgap.watch.history import LONGEST, History
from rankgap.watch.reading import Reading


def simulate(cadence: Cadence, steps: int, step: float, cost: float) -> tuple[list[int], float]:
    """The steps that are read, and the share of the time that readings take, by a clock of our own."""
    now, read = 0.0, []
    for number in range(steps):
        now += step
        if cadence.due(number):
            now += cost
            cadence.note(number, now, cost)
            read.append(number)
    return read, len(read) * cost / now


def test_a_fixed_interval_reads_every_so_many_steps() -> None:
    assert simulate(Cadence(3), 10, 1, 100)[0] == [0, 3, 6, 9]
    assert Cadence(3).every == 3


@given(st.floats(1e-4, 10), st.floats(1e-5, 10))
def test_readings_of_an_endless_run_stay_under_their_share(step: float, cost: float) -> None:
    read, _ = simulate(Cadence(), 5_000, step, cost)
    read = read[math.ceil(FREE / cost) + 1 :]
    affordable = max(cost / (SHARE * step), 1)
    gaps = [b - a for a, b in itertools.pairwise(read[1:])]
    assert all(affordable - 1e-6 <= gap <= affordable + 1 + 1e-6 for gap in gaps)


@given(st.integers(1, 3_000), st.floats(1e-5, FREE / 200))
def test_a_run_of_unknown_length_has_had_forty_readings_at_any_time(steps: int, cost: float) -> None:
    read, _ = simulate(Cadence(), steps, 1e-4, cost)
    assert len(read) >= min(steps, READINGS) - 1


@given(st.integers(1, 3_000), st.floats(1e-4, 10))
def test_a_run_of_known_length_is_read_forty_times_however_dear(steps: int, cost: float) -> None:
    read, _ = simulate(Cadence(steps=steps), steps, 0.01, cost)
    assert len(read) >= min(steps, READINGS)
    assert read[-1] == steps - 1


def test_a_cheap_reading_is_taken_at_every_step() -> None:
    read, share = simulate(Cadence(), 1_000, 1.0, 0.001)
    assert len(read) == 1_000
    assert share < SHARE


@given(st.integers(1, 10**7))
def test_our_own_runs_have_forty_readings_and_long_ones_more(steps: int) -> None:
    every = interval(steps)
    assert 1 <= every <= 10
    assert -(-steps // every) >= min(steps, READINGS)


def readings(count: int) -> History:
    history = History()
    for step in range(count):
        history.add(Reading(step))
    return history


@pytest.mark.parametrize("count", [1, LONGEST, LONGEST + 1, 2 * LONGEST + 7, 55_555])
def test_a_long_history_is_thinned_evenly(count: int) -> None:
    history = readings(count)
    steps = [reading.step for reading in history]
    assert len(steps) <= LONGEST
    assert steps[-1] == count - 1
    assert steps[0] == 0
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert len(steps) >= min(count, LONGEST // 2)
