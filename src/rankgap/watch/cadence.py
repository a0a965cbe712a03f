"""How often the branches are read: often enough to see a short run, seldom enough not to slow a long one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from numbers import Real
from statistics import median
from typing import Self

from rankgap.errors import UserError
from rankgap.watch.doctor import Diagnosis

READINGS = 40  # at least, in a run of known length with that many steps
SHARE = 0.01  # of the time of training that readings may take
FREE = 1.0  # seconds in all, which readings may take in any run


def interval(steps: int) -> int:
    """Steps from one reading to the next in our own runs: `READINGS` in a short run, more in a long one."""
    return min(max(steps // READINGS, 1), 10)


class Cadence:
    """Says which steps are read.

    A fixed interval reads every so many steps. An automatic one measures what readings cost and what steps take,
    and keeps readings under `SHARE` of the time, but a run of known length has `READINGS` at least, and its last
    step is read. A run of unknown length may be short, so it too has had as many at any time, until readings have
    taken `FREE` seconds.

    Args:
        every: steps from one reading to the next; None measures.
        steps: the length of the run, if known.

    Raises:
        UserError: either is below 1.
    """

    def __init__(self, every: int | None = None, steps: int | None = None) -> None:
        if any(n is not None and not (isinstance(n, Real) and n >= 1) for n in (every, steps)):
            raise UserError(
                f"every and steps must be 1 or more, got {'auto' if every is None else every} and {steps}"
            )
        self.fixed, self.steps = every, steps
        self._step, self._at = -1, 0.0  # of the newest reading: its step, and the time when it was done
        self._spent = 0.0  # seconds
        self._costs: deque[float] = deque(maxlen=5)  # seconds of a reading
        self._times: deque[float] = deque(maxlen=5)  # seconds of a step

    @property
    def every(self) -> int:
        """Steps from one reading to the next, as things stand."""
        if self.fixed is not None:
            return self.fixed
        # The steps after the first reading show what a step takes.
        affordable = max(self.cost / SHARE, 1) if self._times else 2
        longest = math.inf if self.steps is None else max(self.steps // READINGS, 1)
        return math.ceil(min(affordable, longest))

    @property
    def cost(self) -> float:
        """The time of a reading, in steps; NaN before the second one."""
        return median(self._costs) / max(median(self._times), 1e-9) if self._times else math.nan

    def due(self, step: int) -> bool:
        """Whether a step is to be read."""
        if self.fixed is not None:
            return step % self.fixed == 0
        every = min(self.every, max(step // READINGS, 1)) if self._spent < FREE else self.every
        return self._step < 0 or step - self._step >= every or step + 1 == self.steps

    def note(self, step: int, at: float, cost: float) -> None:
        """Note that a step was read: the time when that was done, and what it cost, in seconds."""
        if 0 <= self._step < step:
            self._times.append((at - cost - self._at) / (step - self._step))
        self._costs.append(cost)
        self._spent += cost
        self._step, self._at = step, at


class StepCount(int):
    """The number of steps so far. Calling it ends a step by hand."""

    def __new__(cls, count: int, end: Callable[[], Diagnosis]) -> Self:
        """A count, and what a call does."""
        made = super().__new__(cls, count)
        made._end = end
        return made

    _end: Callable[[], Diagnosis]

    def __call__(self) -> Diagnosis:
        """End a step; returns the diagnosis."""
        return self._end()

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """In a copy and in a file it is a plain number."""
        return int, (int(self),)
