"""Two things timed in turns, so that a slow minute of the machine is no one's disadvantage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a suite is run with.

    Args:
        repeats: of each measurement.
        peers: compare with the libraries of the `bench` extra too.
        data: `--data` of rankgap for what needs real images; None leaves that out.
    """

    repeats: int = 7
    peers: bool = False
    data: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Args:
        what: is measured.
        against: what it is compared with; empty where the bar is in seconds.
        seconds: median of ours.
        ratio: median of the ratios of theirs to ours, repetition by repetition; None without a comparison.
        spread: least and greatest of those ratios (or of the seconds).
        bar: what was set.
        met: whether.
    """

    what: str
    against: str
    seconds: float
    ratio: float | None
    spread: tuple[float, float]
    bar: str
    met: bool


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repeats: int,
    clock: Callable[[Any], float] = seconds,
) -> tuple[float, float, tuple[float, float]]:
    """Median seconds of ours, and the ratio theirs / ours: its median, least and greatest.

    Both run once before the clock starts, and each repetition swaps who goes first.

    Args:
        ours: what is measured.
        theirs: what it is compared with.
        repeats: repetitions of both.
        clock: seconds of a call; `itself` for calls that return their own.
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
    """The clock of calls that return their seconds."""
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
    """The row of a peer that ours is to be `bar` times as fast as."""
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
