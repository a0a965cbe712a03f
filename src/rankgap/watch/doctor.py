"""Has it collapsed, and why? From readings of both branches along training to a kind, a cause and a first knob."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a run suffers from.

    Args:
        kind: its name; "healthy" where nothing was found.
        step: at which it was seen.
        saw: the numbers, in a sentence.
        cause: what most often causes it.
        knob: what to turn first.
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
        return f"{self.kind} at step {self.step}: {self.saw}. Likely {self.cause}; first {self.knob}."


@dataclass(kw_only=True, slots=True)
class Doctor:
    """Reads a run's history and names what is wrong with it.

    Args:
        patience: readings in a row that must agree before anything but non-finite values is named.
        constant: `Reading.spread` at or below which features count as constant.
        share: of the target's early peak below which its effective rank counts as collapsed. Ranks of a random
            network are high and fall in healthy runs too, to a tenth in short ones.
        floor: effective rank at or below which it counts as collapsed in any case.
        early: readings in which that peak is sought.
        margin: share of the online rank that the target's must lie below it to count as a negative difference: the
            two views of a symmetric model differ by noise, and while SimSiam's predictor is learning it passes the
            target by up to a sixth in runs that end well. A filter on the wrong branch makes it several times.
        uniform: share of ln K above which an assignment counts as uniform.
        single: share of ln K below which one prototype counts as having it all.
    """

    patience: int = 5
    constant: float = 0.02
    share: float = 0.03
    floor: float = 1.05
    early: int = 10
    margin: float = 0.25
    uniform: float = 0.99
    single: float = 0.05
    peak: float = 0.0
    seen: int = 0
    recent: deque[Reading] = field(default_factory=deque)

    def __call__(self, reading: Reading) -> Diagnosis:
        """Take a reading in and say how the run stands."""
        if not reading.finite:
            return Diagnosis(
                "non-finite",
                reading.step,
                "outputs have values that are not finite",
                "a learning rate that is too high, or half precision that overflows",
                "lower the learning rate, or train in float32",
            )
        if self.seen < self.early and math.isfinite(reading.erank_target):
            self.peak = max(self.peak, reading.erank_target)
        self.seen += 1
        self.recent.append(reading)
        while len(self.recent) > self.patience:
            self.recent.popleft()
        if len(self.recent) < self.patience:
            return Diagnosis("healthy", reading.step)
        return self._judge(reading)

    def _judge(self, now: Reading) -> Diagnosis:
        recent, step = list(self.recent), now.step
        if all(r.usage is not None and r.usage < self.single for r in recent):
            return Diagnosis(
                "one prototype",
                step,
                f"the targets' mean has {now.usage:.1%} of the entropy of ln K: one prototype has it all",
                "centring that is too slow, or targets that are too sharp",
                "lower the centre's momentum, or raise the teacher's temperature",
            )
        if all(r.assignment is not None and r.assignment > self.uniform for r in recent):
            return Diagnosis(
                "uniform assignment",
                step,
                f"the targets have {now.assignment:.1%} of the entropy of ln K, so the loss stays at ln K",
                "targets that are too soft, or views too strong for so short a run",
                "lower the teacher's temperature (or Sinkhorn's eps), or soften the colour jitter",
            )
        distributions = now.assignment is not None
        if not distributions and all(r.spread <= self.constant for r in recent):
            return Diagnosis(
                "complete",
                step,
                f"all outputs point the same way (spread {now.spread:.2g})",
                "a missing stop-gradient, predictor or filter: both branches are the same",
                "detach the target, and give one branch a filter (target power:-0.5)",
            )
        if all(not r.erank_target > max(self.share * self.peak, self.floor) for r in recent):
            return Diagnosis(
                "dimensional",
                step,
                f"the target's effective rank is {now.erank_target:.2f} after an early peak of {self.peak:.1f}",
                "no rank difference between the branches, so that dimensions die",
                "put a high-pass filter on the target (power:-0.5) or a low-pass one online (power:0.5)",
            )
        if all(r.rank_difference < -self.margin * r.erank_online for r in recent):
            return Diagnosis(
                "negative rank difference",
                step,
                f"the target's effective rank is below the online one's ({now.erank_target:.2f} < "
                f"{now.erank_online:.2f}) for {len(recent)} readings",
                "a filter on the wrong branch: dimensions will die",
                "swap the filter's sign or its branch",
            )
        return Diagnosis("healthy", step)


def alarms(history: Iterable[Reading], doctor: Doctor | None = None) -> list[Diagnosis]:
    """Every diagnosis of a history that is not healthy, once for each time that it begins."""
    doctor, found, last = doctor or Doctor(), [], "healthy"
    for reading in history:
        diagnosis = doctor(reading)
        if diagnosis and diagnosis.kind != last:
            found.append(diagnosis)
        last = diagnosis.kind
    return found
