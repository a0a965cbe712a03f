"""The diagnosis of a run: whether it has collapsed, the likely cause, and the first thing to change."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rankgap.watch.reading import Reading

Kind = Literal[
    "healthy",
    "complete",
    "dimensional",
    "uniform assignment",
    "one prototype",
    "negative rank difference",
    "non-finite",
]

ONE = 1.05  # an effective rank of 1, up to noise


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a run, and what to do about it.

    Args:
        kind: the name of the fault; "healthy" if there is none.
        step: the training step at which it was seen.
        saw: the numbers that show it.
        cause: the most frequent cause.
        knob: the first thing to change.
    """

    kind: Kind
    step: int
    saw: str = ""
    cause: str = ""
    knob: str = ""

    def __bool__(self) -> bool:
        """Whether something is wrong."""
        return self.kind != "healthy"

    def __str__(self) -> str:
        if not self:
            return f"healthy at step {self.step}"
        return f"{self.kind} at step {self.step}: {self.saw}. Likely cause: {self.cause}. First, {self.knob}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Where the doctor draws its lines.

    Args:
        patience: readings in a row that must agree before a fault is named; non-finite values are named at once.
        constant: `Reading.spread` at or below which features count as constant.
        share: share of the target's early peak below which its dimensions count as dying. The effective ranks of
            a random network are high and fall in healthy runs too, to a fifteenth in short runs.
        floor: effective rank at or below which the target's dimensions count as dying in any case; a tenth of the
            highest possible rank if that is lower.
        fall: share of the target's rank half a run ago below which `judge` calls it falling.
        pull: share of the online rank by which the target's must exceed it to pull a falling rank up again.
        gone: effective rank of a dying target at or below which `judge` calls the run collapsed.
        early: number of readings in which that peak is sought.
        margin: share of the online rank by which the target's must lie below it to count as a negative difference.
            The two views of a symmetric model differ by noise, and while SimSiam's predictor is learning the
            online rank exceeds the target's by up to a sixth in runs that end well. A filter on the wrong branch
            makes the online rank several times as high.
        uniform: share of ln K above which an assignment counts as uniform.
        single: share of ln K below which one prototype counts as taking everything.
    """

    patience: int = 5
    constant: float = 0.02
    share: float = 0.05
    floor: float = 2.0
    fall: float = 0.85
    pull: float = 0.05
    gone: float = 1.5
    early: int = 10
    margin: float = 0.25
    uniform: float = 0.99
    single: float = 0.05


class Doctor:
    """Takes a run's readings one by one, and names what is wrong with the run.

    Args:
        thresholds: where to draw the lines; the defaults of `Thresholds` if None.

    Attributes:
        peak: the highest effective rank among the target's early readings.
        seen: number of finite readings so far.
        recent: the newest of them, at most `Thresholds.patience`.
        newest: the newest reading, finite or not; None before the first.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.peak = 0.0
        self.seen = 0
        self.newest: Reading | None = None
        self.recent: deque[Reading] = deque(maxlen=self.thresholds.patience)

    def __call__(self, reading: Reading) -> Diagnosis:
        """Take a new reading, and return the diagnosis."""
        limits, self.newest = self.thresholds, reading
        if reading.finite:
            if self.seen < limits.early and math.isfinite(reading.erank_target):
                self.peak = max(self.peak, reading.erank_target)
            self.seen += 1
            self.recent.append(reading)
            if len(self.recent) < limits.patience:
                return Diagnosis("healthy", reading.step)
        return self.diagnose()

    def diagnose(self) -> Diagnosis:
        """The diagnosis of the newest readings, however few; at least one is required."""
        recent, now, limits = self.recent, self.newest, self.thresholds
        assert now is not None
        step = now.step
        if not now.finite:
            return Diagnosis(
                "non-finite",
                step,
                "some outputs are not finite",
                "a learning rate that is too high, or half precision that overflows",
                "lower the learning rate, or train in float32",
            )
        if all(r.usage is not None and r.usage < limits.single for r in recent):
            return Diagnosis(
                "one prototype",
                step,
                f"the entropy of the mean target is {now.usage:.1%} of ln K: one prototype takes everything",
                "centring that is too slow, or targets that are too sharp",
                "lower the centre's momentum, or raise the teacher's temperature",
            )
        if all(r.assignment is not None and r.assignment > limits.uniform for r in recent):
            return Diagnosis(
                "uniform assignment",
                step,
                f"the mean entropy of the targets is {now.assignment:.1%} of ln K, so the loss stays at ln K",
                "targets that are too soft, or views too strong for so short a run",
                "lower the teacher's temperature (or Sinkhorn's eps), or soften the colour jitter",
            )
        distributions = now.assignment is not None
        if not distributions and all(r.spread <= limits.constant for r in recent):
            return Diagnosis(
                "complete",
                step,
                f"all outputs point the same way (spread {now.spread:.2g})",
                "a missing stop-gradient, predictor or filter, so that both branches are the same",
                "detach the target, and give one branch a filter (target power:-0.5)",
            )
        line = max(limits.share * self.peak, min(limits.floor, 0.1 * now.full_rank), ONE)
        if all(not r.erank_target > line for r in recent):
            return Diagnosis(
                "dimensional",
                step,
                f"the target's effective rank is {now.erank_target:.2f} after an early peak of {self.peak:.1f}",
                "no rank difference between the branches, so dimensions die out",
                "put a high-pass filter on the target (power:-0.5) or a low-pass one online (power:0.5)",
            )
        if all(r.rank_difference < -limits.margin * r.erank_online for r in recent):
            return Diagnosis(
                "negative rank difference",
                step,
                f"the target's effective rank has been below the online branch's for {len(recent)} readings "
                f"({now.erank_target:.2f} < {now.erank_online:.2f})",
                "a filter on the wrong branch, so dimensions will die out",
                "swap the filter's sign or its branch",
            )
        return Diagnosis("healthy", step)


def alarms(history: Iterable[Reading], thresholds: Thresholds | None = None) -> list[Diagnosis]:
    """Every diagnosis in a history that is not healthy, once for each time that it begins."""
    doctor, found, last = Doctor(thresholds), [], "healthy"
    for reading in history:
        diagnosis = doctor(reading)
        if diagnosis and diagnosis.kind != last:
            found.append(diagnosis)
        last = diagnosis.kind
    return found
