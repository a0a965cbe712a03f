"""Two things timed in turns, so that a slow minute of the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a suite.

    Args:
        repeats: repetitions of each measurement.
        peers: whether to compare with the libraries of the `bench` extra too.
        data: `--data` of rankgap, for measurements that need real images; None leaves them out.
    """

    repeats: int = 7
    peers: bool = False
    data: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Args:
        what: the work that is measured.
        against: what it is compared with; empty if the bar is in seconds.
        seconds: the median time of our side.
        ratio: the median over repetitions of their time to ours; None without a comparison.
        spread: the smallest and largest of those ratios, or of the seconds without a comparison.
        bar: the requirement.
        met: whether the requirement is met.
    """

    what: str
    against: str
    seconds: float
    ratio: float | None
    spread: tuple[float, float]
    bar: str
    met: bool


def seconds(run: Callable[[], object]) -> float:
    """The wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repeats: int,
    clock: Callable[[Any], float] = seconds,
) -> tuple[float, float, tuple[float, float]]:
    """The median seconds of our side, and the median, smallest and largest ratio of their time to ours.

    Both sides run once before the clock starts, and each repetition swaps which side goes first.

    Args:
        ours: the work that is measured.
        theirs: the work that it is compared with.
        repeats: repetitions of both sides.
        clock: the seconds of a call; `itself` for calls that return their own.
    """
    ours(), theirs()
    times, ratios = [], []
    for repeat in range(repeats):
        first, second = (ours, theirs) if repeat % 2 else (theirs, ours)
        a, b = clock(first), clock(second)
        mine, other = (a, b) if repeat % 2 else (b, a)
        times.append(mine)
        ratios.append(other / mine)
    return statistics.median(times), statistics.median(ratios), (min(ratios), max(ratios))


def itself(run: Callable[[], float]) -> float:
    """The clock for calls that return their own seconds."""
    return run()


def compared(
    what: str,
    against: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    bar: float,
    repeats: int,
    clock: Callable[[Any], float] = seconds,
) -> Row:
    """The row of a comparison in which our side must be `bar` times as fast."""
    mine, ratio, spread = in_turns(ours, theirs, repeats, clock)
    return Row(
        what=what,
        against=against,
        seconds=mine,
        ratio=ratio,
        spread=spread,
        bar=f"{bar:g}x at least",
        met=ratio >= bar,
    )
