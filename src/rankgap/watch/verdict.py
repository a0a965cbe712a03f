"""The verdict on a run: the fate of its dimensions, from all its readings and the encoder's features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rankgap.notebook import summary
from rankgap.watch.doctor import ONE, Diagnosis, Doctor, Kind, Thresholds
from rankgap.watch.reading import Reading

Outcome = Literal["healthy", "shrinking", "collapsed"]

# Faults that leave a run some of its dimensions; the others leave it none, or tell nothing apart.
_DYING: frozenset[Kind] = frozenset(
    {"dimensional", "negative rank difference", "target too close", "falling late"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """How many of the available dimensions are used.

    Args:
        rank: effective rank of the uncentred correlation; None if all rows are zero or not all are finite.
        of: the highest rank that these rows could have, min(N, D).
    """

    rank: float | None
    of: int

    def __str__(self) -> str:
        if self.rank is None:
            return f"none of {self.of} dimensions" if self.of else "no dimensions"
        shown = f"{self.rank:z.1f}" if self.rank < 9.95 else f"{self.rank:.0f}"
        possible = f" of {self.of}" if self.of else ""  # unknown in a run of an earlier version
        return f"{shown.removesuffix('.0')}{possible} dimensions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verdict on a run's dimensions.

    Args:
        kind: "collapsed" if one branch's outputs or the features carry no information any more; "shrinking" if
            most dimensions have died or are dying; otherwise "healthy".
        outputs: the dimensions that the target's outputs use, as the median of the newest readings, or of those
            that show the fault. Of tokens, all count as rows.
        features: the dimensions that the encoder's features use; None if they were not measured.
        saw: the numbers that show it; empty if healthy.
        cause: the most frequent cause.
        knob: the first thing to change.
        images: the dimensions that the images' means use, if the outputs are tokens; otherwise None.
        caveat: why a healthy run may not stay so; empty if nothing speaks against it.
    """

    kind: Outcome
    outputs: Use
    features: Use | None = None
    saw: str = ""
    cause: str = ""
    knob: str = ""
    images: Use | None = None
    caveat: str = ""

    @property
    def uses(self) -> str:
        """The number of dimensions in use, in words."""
        more = {"the images' means": self.images, "the features": self.features}
        rest = (f", {name} {use}".removesuffix(" dimensions") for name, use in more.items() if use is not None)
        return f"the outputs use {self.outputs}{''.join(rest)}"

    @property
    def why(self) -> str:
        """The evidence, the likely cause, and the first thing to change; of a healthy run, the caveat if any."""
        if not self.saw:
            return _sentence(self.caveat) if self.caveat else ""
        return f"{_sentence(self.saw)} Likely cause: {self.cause}. First, {self.knob}."

    def __str__(self) -> str:
        return f"{self.kind}: {self.uses}. {self.why}".rstrip()

    def _repr_html_(self) -> str:
        """The verdict as a notebook shows it."""
        facts = {"dimensions": self.uses, "saw": self.saw, "likely cause": self.cause, "first": self.knob}
        facts["but"] = self.caveat
        return summary(f"Verdict: {self.kind}", facts)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def judge(
    history: Sequence[Reading], features: Use | None = None, thresholds: Thresholds | None = None
) -> Verdict:
    """Judge a run by all its readings, and by its encoder's features.

    The newest readings decide: an alarm that has passed does not count. A run that is shorter than the doctor's
    patience is judged by the readings that it has, and where all outputs point one way in the newest reading, that
    reading is enough. Readings that are not finite count only if the newest is one.

    Args:
        history: the run's readings, one or more.
        features: the dimensions that the encoder's features use, over many images.
        thresholds: the limits; by default those of `Thresholds`.
    """
    now = history[-1]
    doctor = Doctor(thresholds, steps=now.step + 1)
    for reading in history:
        doctor(reading)
    limits, diagnosis = doctor.thresholds, doctor.diagnose()
    finite = [r for r in history if r.finite] or [now]
    count, _ = doctor.shown.get(diagnosis.kind, (limits.patience, now.step))
    newest = finite[-min(count, limits.patience) :]
    rank, full_rank = median(r.erank_target for r in newest), newest[-1].full_rank
    if not diagnosis:
        diagnosis = _fading(finite, limits) or diagnosis
    if not diagnosis and features is not None and (features.rank is None or features.rank <= ONE):
        diagnosis = Diagnosis(
            "complete",
            now.step,
            "the encoder gives all images nearly the same features",
            "images that are all alike, a run that is too short, or a collapse before the projector",
            "check the images with `rankgap inspect`; if they differ, train for more steps, or raise the rank "
            "difference (a high-pass filter on the target, or a steeper one)",
        )
    kind: Outcome = "healthy"
    if diagnosis:
        kind = "shrinking" if diagnosis.kind in _DYING and rank > limits.gone else "collapsed"
    steps = now.step + 1
    few = not diagnosis and steps < limits.apart * (limits.patience - 1)  # no fault is named in fewer
    of_images = [r.image_rank_target for r in newest if r.image_rank_target is not None]
    return Verdict(
        kind=kind,
        outputs=_use(rank, full_rank),
        features=features,
        saw=diagnosis.saw,
        cause=diagnosis.cause,
        knob=diagnosis.knob,
        images=_use(median(of_images), min(newest[-1].images or math.nan, full_rank)) if of_images else None,
        caveat=f"too early to tell, after {steps} step{'' if steps == 1 else 's'}" if few else "",
    )


def _use(rank: float, of: float) -> Use:
    return Use(rank=rank if math.isfinite(rank) else None, of=int(of) if math.isfinite(of) else 0)


def _fading(history: Sequence[Reading], limits: Thresholds) -> Diagnosis | None:
    """The diagnosis of a run that ends while its dimensions die: the target's rank falls and will not recover.

    The rank is compared with the one half a run ago: if the learning rate ends at 0, every fall slows at the end.
    """
    count = max(limits.patience, len(history) // 12)  # as many as the doctor asks for where all steps are read
    newest, earlier = history[-count:], history[: len(history) // 2][-count:]
    if not earlier:
        return None
    before, now = (median(r.erank_target for r in part) for part in (earlier, newest))
    pull = median(r.rank_difference / max(r.erank_online, 1.0) for r in newest)
    if not (now < limits.fall * before and pull < limits.pull):
        return None
    return Diagnosis(
        "dimensional",
        history[-1].step,
        f"the target's effective rank fell from {before:.1f} to {now:.1f} in the second half of the run, and is "
        f"not clearly above the online branch's ({median(r.erank_online for r in newest):.1f})",
        "no rank difference between the branches, so dimensions die out",
        "put a high-pass filter on the target (power:-0.5) or a low-pass one online (power:0.5)",
    )
