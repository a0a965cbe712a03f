"""The diagnosis of a run: whether it has collapsed, the likely cause, and the first thing to change."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from rankgap.watch.reading import Reading

Kind = Literal[
    "healthy",
    "complete",
    "one branch constant",
    "positional collapse",
    "dimensional",
    "uniform assignment",
    "one prototype",
    "negative rank difference",
    "target too close",
    "falling late",
    "non-finite",
]

ONE = 1.05  # an effective rank of 1, up to noise
_SHORT = 48  # in a run of known length, readings that agree need not be more than this part of it apart
_MARKS = 64  # ranks kept of a run's past, at most
_IMAGES = 8  # that tokens must come from to tell positions from images; two views are alike at each position


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
        apart: training steps from one of these readings to the next, on average and at least, so that a few noisy
            steps that are all read raise no alarm; a 48th of a run of known length if that is less.
        constant: `Reading.spread` at or below which both branches count as constant. One branch alone counts as
            constant at half of it, because a healthy BYOL's predictor begins with a spread of 0.025 to 0.05.
        positional: share of the target's variance that positions must explain to count as positional collapse
            where the image rank is `gone` or less. A healthy JEPA's target begins at 0.2, its predictor at 0.95.
        alone: the same share, whatever the image rank: a batch norm centres the images' means, and what is left of
            them is noise in many dimensions.
        share: share of the target's early peak below which its dimensions count as dying. The effective ranks of
            a random network are high and fall in healthy runs too, to a fifteenth in short runs.
        floor: effective rank at or below which the target's dimensions count as dying in any case; a tenth of the
            highest possible rank if that is lower.
        fall: share of an earlier rank below which a rank has fallen.
        late: share of a plateau, held from a quarter to half of the run, below which the target's rank has fallen
            late.
        pull: share of the online rank by which the target's must exceed it to pull a falling rank up again. The
            target is too close if it differs by less, above or below.
        gone: effective rank of a dying target at or below which `judge` calls the run collapsed.
        early: number of readings in which that peak is sought.
        margin: share of the online rank by which the target's must lie below it to count as a negative difference.
            The two views of a symmetric model differ by noise, and while SimSiam's predictor is learning the
            online rank exceeds the target's by up to a sixth in runs that end well. A filter on the wrong branch
            makes the online rank several times as high. The online rank of a wider branch does not count where
            it is higher than the target's could be.
        uniform: share of ln K above which an assignment counts as uniform.
        single: share of ln K below which one prototype counts as taking everything.
    """

    patience: int = 5
    apart: int = 10
    constant: float = 0.02
    positional: float = 0.95
    alone: float = 0.99
    share: float = 0.05
    floor: float = 2.0
    fall: float = 0.85
    late: float = 0.5
    pull: float = 0.05
    gone: float = 1.5
    early: int = 10
    margin: float = 0.25
    uniform: float = 0.99
    single: float = 0.05


class _Ranks(NamedTuple):
    """The ranks around a step: medians of the newest readings."""

    step: int
    online: float
    target: float


class Doctor:
    """Takes a run's readings one by one, and names what is wrong with the run.

    A fault is named when it has shown in `Thresholds.patience` readings in a row that span enough steps. What is
    kept of the past does not grow with the run.

    Args:
        thresholds: where to draw the lines; the defaults of `Thresholds` if None.
        steps: length of the run in training steps, if known. Short runs then need fewer steps to agree, and a late
            fall can be named while the run goes on.

    Attributes:
        steps: length of the run; None if unknown.
        peak: the highest effective rank among the target's early readings.
        seen: number of finite readings so far.
        recent: the newest of them, at most `Thresholds.patience`.
        newest: the newest reading, finite or not; None before the first.
        shown: the faults that show in the newest finite reading, with the number of readings in a row in which
            they do, and the step of the first of these.
    """

    def __init__(self, thresholds: Thresholds | None = None, steps: int | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.steps = steps
        self.peak = 0.0
        self.seen = 0
        self.newest: Reading | None = None
        self.recent: deque[Reading] = deque(maxlen=self.thresholds.patience)
        self.shown: dict[Kind, tuple[int, int]] = {}
        self._past: list[_Ranks] = []  # oldest first, evenly spaced
        self._apart = 1  # readings from one of them to the next

    def __call__(self, reading: Reading) -> Diagnosis:
        """Take a new reading, and return the diagnosis."""
        self.newest = reading
        if reading.finite:
            self._remember(reading)
            for fault in FAULTS:
                if fault.shows(self, reading):
                    count, since = self.shown.get(fault.kind, (0, reading.step))
                    self.shown[fault.kind] = count + 1, since
                else:
                    self.shown.pop(fault.kind, None)
        return self._first(self._lasts)

    def diagnose(self) -> Diagnosis:
        """The diagnosis if the run ends here; at least one reading is required.

        A run that is shorter than the patience is judged by the readings that it has. Where no rank is left, or a
        branch is constant, the newest reading is enough.
        """

        def ended(kind: Kind) -> bool:
            assert self.newest is not None
            none_left = not self.newest.erank_target > self.thresholds.gone
            return none_left or kind in _CONSTANT or self.shown[kind][0] == self.seen or self._lasts(kind)

        return self._first(ended)

    def ranks(self) -> _Ranks:
        """The medians of the newest readings' ranks."""
        online, target = zip(*((r.erank_online, r.erank_target) for r in self.recent), strict=True)
        return _Ranks(self.recent[-1].step, median(online), median(target))

    def since(self, step: float) -> list[_Ranks]:
        """The ranks that are kept from the last ones before a step on, oldest first; one at least."""
        return self._past[max(bisect_right(self._past, step, key=lambda ranks: ranks.step) - 1, 0) :]

    def line(self, reading: Reading) -> float:
        """The effective rank at or below which the target's dimensions count as dying."""
        limits = self.thresholds
        return max(limits.share * self.peak, min(limits.floor, 0.1 * reading.full_rank), ONE)

    def _remember(self, reading: Reading) -> None:
        if self.seen < self.thresholds.early and math.isfinite(reading.erank_target):
            self.peak = max(self.peak, reading.erank_target)
        self.recent.append(reading)
        if self.seen % self._apart == 0:
            self._past.append(self.ranks())
        if len(self._past) > _MARKS:
            del self._past[1::2]
            self._apart *= 2
        self.seen += 1

    def _lasts(self, kind: Kind) -> bool:
        limits, (count, since) = self.thresholds, self.shown[kind]
        apart = limits.apart if self.steps is None else min(limits.apart, self.steps / _SHORT)
        return count >= limits.patience and self.recent[-1].step - since >= apart * (limits.patience - 1)

    def _first(self, named: Callable[[Kind], bool]) -> Diagnosis:
        """The first of the faults that show in the newest reading and are to be named."""
        now = self.newest
        assert now is not None
        if not now.finite:
            return Diagnosis(
                "non-finite",
                now.step,
                "some outputs are not finite",
                "a learning rate that is too high, or half precision that overflows",
                "lower the learning rate, or train in float32",
            )
        for fault in FAULTS:
            if fault.kind in self.shown and named(fault.kind):
                return Diagnosis(fault.kind, now.step, fault.saw(self, now), fault.cause, fault.knob)
        return Diagnosis("healthy", now.step)


class News:
    """Tells the diagnosis of a fault that begins: each kind once, until the run is healthy again."""

    def __init__(self) -> None:
        self._told: set[Kind] = set()

    def __call__(self, diagnosis: Diagnosis) -> bool:
        """Whether the diagnosis is news."""
        if not diagnosis:
            self._told.clear()
            return False
        known = diagnosis.kind in self._told
        self._told.add(diagnosis.kind)
        return not known


def alarms(
    history: Iterable[Reading], thresholds: Thresholds | None = None, steps: int | None = None
) -> list[Diagnosis]:
    """Every diagnosis in a history that is `News`; see `Doctor`."""
    doctor, is_news = Doctor(thresholds, steps), News()
    return [diagnosis for diagnosis in map(doctor, history) if is_news(diagnosis)]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault: what it means, whether it shows in a reading, and the words for it."""

    kind: Kind
    means: str
    shows: Callable[[Doctor, Reading], bool]
    saw: Callable[[Doctor, Reading], str]
    cause: str
    knob: str


def _both_constant(doctor: Doctor, r: Reading) -> bool:
    limit = doctor.thresholds.constant
    # A distribution points the same way as the uniform one at first. Older runs have no spread of the target.
    return r.assignment is None and r.spread <= limit and not r.spread_target > limit


def _one_constant(doctor: Doctor, r: Reading) -> bool:
    low, high = sorted((r.spread, r.spread_target))
    limit = doctor.thresholds.constant
    return r.assignment is None and low <= limit / 2 and high > limit


def _positional(doctor: Doctor, r: Reading) -> bool:
    limits = doctor.thresholds
    share, rank = r.position_share_target, r.image_rank_target
    if share is None or rank is None or (r.images is not None and r.images < _IMAGES):
        return False
    return share >= limits.alone or (share >= limits.positional and not rank > limits.gone)


def _negative_difference(doctor: Doctor, r: Reading) -> bool:
    wider = r.erank_online > ONE * r.full_rank  # than the target, which could not have that rank
    return not wider and r.rank_difference < -doctor.thresholds.margin * r.erank_online


def _too_close(doctor: Doctor, r: Reading) -> bool:
    limits, now, since = doctor.thresholds, doctor.ranks(), doctor.since(r.step / 2)
    close = all(abs(each.target - each.online) <= limits.pull * each.online for each in (*since, now))
    return close and now.target < limits.fall * since[0].target


def _falls_late(doctor: Doctor, r: Reading) -> bool:
    limits, steps = doctor.thresholds, doctor.steps
    if steps is None or r.step < steps / 2 or doctor.seen * steps < 4 * limits.early * (r.step + 1):
        return False  # the early readings must be over by a quarter of the run
    quarter, half = (doctor.since(steps * share)[0].target for share in (0.25, 0.5))
    return half >= limits.fall * quarter and doctor.ranks().target < limits.late * half


_CONSTANT: frozenset[Kind] = frozenset({"complete", "one branch constant", "positional collapse"})

FAULTS = (  # of several, the first is named
    Fault(
        "one prototype",
        "all targets choose the same prototype",
        lambda doctor, r: r.usage is not None and r.usage < doctor.thresholds.single,
        lambda _, r: f"the entropy of the mean target is {r.usage:.1%} of ln K: one prototype takes everything",
        "centring that is too slow, or targets that are too sharp",
        "lower the centre's momentum, or raise the teacher's temperature",
    ),
    Fault(
        "uniform assignment",
        "every target is spread evenly over all prototypes",
        lambda doctor, r: r.assignment is not None and r.assignment > doctor.thresholds.uniform,
        lambda _, r: f"the mean entropy of the targets is {r.assignment:.1%} of ln K, so the loss stays at ln K",
        "targets that are too soft, or views too strong for so short a run",
        "lower the teacher's temperature (or Sinkhorn's eps), or soften the colour jitter",
    ),
    Fault(
        "complete",
        "all outputs of both branches point the same way",
        _both_constant,
        lambda _, r: f"all outputs point the same way (spread {r.spread:.2g})",
        "a missing stop-gradient, predictor or filter, so that both branches are the same",
        "detach the target, and give one branch a filter (target power:-0.5)",
    ),
    Fault(
        "one branch constant",
        "one branch gives all images the same output, the other does not",
        _one_constant,
        lambda _, r: (
            f"the {'online' if r.spread < r.spread_target else 'target'} outputs all point one way, those of the "
            f"other branch do not (spread {r.spread:.2g} online, {r.spread_target:.2g} target)"
        ),
        "a head of that branch that has died, or that the loss does not reach",
        "check that branch's last layers: their initial values, their normalisation and their gradients",
    ),
    Fault(
        "positional collapse",
        "target tokens differ by position, not by image",
        _positional,
        lambda _, r: (
            f"the target tokens differ by position, not by image (positions explain {r.position_share_target:.1%} "
            f"of their variance, and the images' means have an effective rank of {r.image_rank_target:.2f})"
        ),
        "a missing stop-gradient or too fast a teacher, so that targets depend on the position alone",
        "detach the target, and raise the teacher's momentum",
    ),
    Fault(
        "dimensional",
        "the target's effective rank has fallen to a small part of its early peak",
        lambda doctor, r: not r.erank_target > doctor.line(r),
        lambda doctor, r: (
            f"the target's effective rank is {r.erank_target:.2f} after an early peak of {doctor.peak:.1f}"
        ),
        "no rank difference between the branches, so dimensions die out",
        "put a high-pass filter on the target (power:-0.5) or a low-pass one online (power:0.5)",
    ),
    Fault(
        "negative rank difference",
        "the target's rank is clearly below the online branch's",
        _negative_difference,
        lambda doctor, r: (
            f"the target's effective rank has been below the online branch's since step "
            f"{doctor.shown['negative rank difference'][1]:,} ({r.erank_target:.2f} < {r.erank_online:.2f})"
        ),
        "a filter on the wrong branch, so dimensions will die out (with class means as targets, a lower rank of "
        "the target is no fault)",
        "swap the filter's sign or its branch",
    ),
    Fault(
        "target too close",
        "both ranks fall, and their difference stays near 0",
        _too_close,
        lambda doctor, r: (
            f"both effective ranks fall (the target's from {doctor.since(r.step / 2)[0].target:.1f} to "
            f"{doctor.ranks().target:.1f} since half the steps so far), and their difference stays near 0"
        ),
        "a target that is too close to the online branch to hold its dimensions, as early in a JEPA's training",
        "raise the teacher's momentum, or put a high-pass filter on the target (power:-0.5)",
    ),
    Fault(
        "falling late",
        "after a plateau, the target's rank has fallen in the second half of a run of known length",
        _falls_late,
        lambda doctor, _: (
            f"the target's effective rank fell from {doctor.since((doctor.steps or 0) / 2)[0].target:.1f} to "
            f"{doctor.ranks().target:.1f} in the second half of the run, after a plateau"
        ),
        "training that is too long for the data: dense features degrade late while the loss still falls",
        "score the checkpoints (`rankgap score`), and keep one from before the fall",
    ),
)
