"""The design of a pair of filters before any training.

A pair is assessed on a reference spectrum: its kind, its rank difference, how the rank grows in the linear flow,
and its numerics. Gains act on x = s / sqrt(N), where s are the singular values of the projector's output Z (N, D).

Shapes: R = min(N, D) directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.filters.formulas import LARGEST
from rankgap.filters.gains import AutoPower, Gain, parse_gain
from rankgap.notebook import curves, summary
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.gram import rank_tolerance
from rankgap.spectra.pair import low_pass_score
from rankgap.theory.flow import Flow, FlowResult, linear_flow
from rankgap.theory.lemmas import Lemma, filter_lemma
from rankgap.theory.reference import Reference

UNITS = 5  # of time, for which the flow is followed
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Times at which the flow is read, in units. The first step is short: the initial growth is read from it.
_TIMES = torch.cat([torch.tensor([0.0, 0.005]), torch.linspace(0.05, UNITS, 100)]).double()
_NOISE = 0.25  # the energy that augmentation adds to each direction, as a share of the mean energy
_MOST_ROUNDING = 0.01  # of a filtered batch's energy, above which rounding is warned of
_TIE = 1e-9  # scores and rank differences below this count as 0


@dataclass(frozen=True, slots=True)
class Numerics:
    """The effect of a dtype on a batch that arrives in it (the filter itself runs in float32).

    Args:
        dtype: its name.
        rounding_online: the share of P's energy that is rounding of Z.
        rounding_target: the share of T's energy that is rounding of Z.
        largest: a bound on the entries of P and T, over the largest number of the dtype.
    """

    dtype: str
    rounding_online: float
    rounding_target: float
    largest: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Assessment:
    """The expected effect of a pair of filters on a reference spectrum. It prints as a table.

    Args:
        reference: the spectrum.
        online: the gain on the online branch; None is the identity.
        target: the gain on the target branch; None is the identity.
        gain_online: the online gain's values on the spectrum (R,), 0 in the null space; ones for the identity.
        gain_target: the target gain's values on the spectrum (R,), as `gain_online`.
        null: the number of null directions.
        score: `low_pass_score` of |P v| / |T v| along Z's directions v: at 1 dimensions grow, at -1 they collapse.
        lemmas: the filter lemma for each filter, by branch.
        flow: the flow of the linear model with the filters.
        baseline: the flow of the linear model without filters.
        unit: the flow's unit of time, sum x^2.
        numerics: by dtype of the incoming batch.
    """

    reference: Reference
    online: Gain | None
    target: Gain | None
    gain_online: Tensor
    gain_target: Tensor
    null: int
    score: float
    lemmas: dict[Side, Lemma]
    flow: FlowResult
    baseline: FlowResult
    unit: float
    numerics: tuple[Numerics, ...]

    @property
    def kept(self) -> Tensor:
        """The reference spectrum without its null directions."""
        return self.reference.x[: len(self.reference.x) - self.null]

    @property
    def erank(self) -> float:
        """Effective rank of Z, of the correlation, as all effective ranks here."""
        return float(effective_rank_of(self.reference.x))

    @property
    def erank_online(self) -> float:
        """Effective rank of P."""
        return float(effective_rank_of(self.reference.x * self.gain_online))

    @property
    def erank_target(self) -> float:
        """Effective rank of T."""
        return float(effective_rank_of(self.reference.x * self.gain_target))

    @property
    def rank_difference(self) -> float:
        """The target's effective rank minus the online one's: above 0, dimensions grow."""
        return self.erank_target - self.erank_online

    @property
    def rate(self) -> float:
        """The growth of the online effective rank at the start of the flow, per unit of time."""
        return float(self.flow.erank_online[1] - self.flow.erank_online[0]) / float(self.flow.times[1]) * self.unit

    @property
    def dies_out(self) -> bool:
        """Whether directions die out in finite time, which ends the flow early."""
        return len(self.flow.times) < len(self.baseline.times)

    @property
    def ranges(self) -> dict[str, float]:
        """The largest over the smallest non-zero singular value, of Z ("Z") and of each filtered branch."""
        kept = self.kept
        spectra = {"Z": kept} | {side: kept * g[: len(kept)] for side, g in self._values.items()}
        return {name: float(s.max() / s[s > 0].min()) for name, s in spectra.items()}

    @property
    def _values(self) -> dict[Side, Tensor]:
        both: dict[Side, Tensor] = {"online": self.gain_online, "target": self.gain_target}
        return {side: g for side, g in both.items() if side in self.gains}

    @property
    def title(self) -> str:
        """The pair as the command line spells it."""
        return " ".join(f"{side} {gain.name}" for side, gain in self.gains.items())

    @property
    def gains(self) -> dict[Side, Gain]:
        """The filters that are present, by branch."""
        both: dict[Side, Gain | None] = {"online": self.online, "target": self.target}
        return {side: gain for side, gain in both.items() if gain is not None}

    @property
    def names(self) -> dict[Side, str]:
        """The filters' names by branch; that of `auto` includes the exponent that it chooses on this spectrum."""
        return {
            side: f"{gain.name}, here power:{float(gain.function.exponent(self.kept)):.2f}"
            if isinstance(gain.function, AutoPower)
            else gain.name
            for side, gain in self.gains.items()
        }

    @property
    def kind(self) -> str:
        """The pair's kind: how the online branch filters relative to the target."""
        if abs(self.score) < _TIE:
            return "neither low- nor high-pass"
        name = "low-pass" if self.score > 0 else "high-pass"
        return name if abs(self.score) > 1 - _TIE else f"mostly {name}"

    def facts(self) -> dict[str, str]:
        """The assessment as rows of a table: name -> text."""
        kinds = {(True, False): "low-pass", (False, True): "high-pass", (True, True): "constant"}
        flow, baseline = (each.erank_online.tolist() for each in (self.flow, self.baseline))
        time = float(self.flow.times[-1]) / self.unit
        ended = ", where directions die out" if self.dies_out else ""
        return {
            "spectrum": f"{self.reference.name}: erank {self.erank:.1f}, {self.null} null",
            "gains": ", ".join(
                f"{side} {self.names[side]} ({kinds.get((gain.is_low_pass, gain.is_high_pass), 'neither')})"
                for side, gain in self.gains.items()
            ),
            "pair": f"{self.kind}: online against target, score {self.score:+.2f}",
            "erank": f"online {self.erank_online:.1f}, target {self.erank_target:.1f}: "
            f"rank difference {self.rank_difference:+.1f}",
            "filter lemma": "\n".join(
                f"{side}: {lemma.claim}, {lemma.left:.1f} >= {lemma.right:.1f}"
                if lemma.premise
                else f"{side}: promises nothing"
                for side, lemma in self.lemmas.items()
            ),
            "linear flow": f"online erank {flow[0]:.1f} -> {flow[-1]:.1f} by time {time:.3g}{ended}; "
            f"{self.rate:+.1f} per unit of time at first\nwithout filters {baseline[0]:.1f} -> {baseline[-1]:.1f}",
            "dynamic range": ", ".join(f"{name} {spread:.3g}" for name, spread in self.ranges.items()),
            "rounding": "\n".join(
                f"{each.dtype}: online {each.rounding_online:.1g} of the energy, target {each.rounding_target:.1g}"
                for each in self.numerics
            ),
            "largest output": "\n".join(
                f"{each.dtype}: {each.largest:.1g} of the largest number it can hold" for each in self.numerics
            ),
        }

    def __repr__(self) -> str:
        rows = [f"{name:<16}{line}" for name, text in self.facts().items() for line in text.splitlines()]
        return "\n".join([self.title, *rows, *(f"warning: {text}" for text in self.warnings())])

    def _repr_html_(self) -> str:
        """The table, and the online rank in the linear flow, as a notebook shows them."""
        times = (self.baseline.times / self.unit).tolist()
        flows = {"online": self.flow, "without filters": self.baseline}
        ranks = {name: flow.erank_online.tolist() for name, flow in flows.items()}
        facts = self.facts() | {"warning": "\n".join(self.warnings())}
        return summary(self.title, facts, curves(times, ranks, over="time, in units", of="online erank"))

    def warnings(self) -> list[str]:
        """The reasons against the pair, each with what to change."""
        return [*self._growth_warnings(), *self._gain_warnings(), *self._rounding_warnings()]

    def _growth_warnings(self) -> Iterator[str]:
        if self.rank_difference <= _TIE:
            yield (
                f"the rank difference is {self.rank_difference:+.2f}, so nothing makes dimensions grow; a "
                "low-pass belongs on the online branch, a high-pass on the target branch"
            )
        elif self.flow.erank_online[-1] < self.flow.erank_online[0]:
            yield (
                f"the rank difference is {self.rank_difference:+.2f}, yet the online rank falls in the linear "
                "flow: the loss favours the directions that views share, and the pair is too weak against that; "
                "use steeper gains"
            )

    def _gain_warnings(self) -> Iterator[str]:
        for side, lemma in self.lemmas.items():
            if not lemma.premise:
                yield (
                    f"{side} {self.gains[side].name}: s g(s) falls somewhere on this spectrum, so strong and weak "
                    "directions change places and the filter lemma does not apply; powers of -1 and above keep "
                    "the order"
                )
        for side, g in self._values.items():
            if closed := int((g == 0).sum()) - self.null:
                yield (
                    f"{side} {self.gains[side].name} is 0 in {closed} of {len(g) - self.null} directions, not "
                    "counting the null ones: they neither pass nor learn; log1p lets all through"
                )
            if (spread := self.ranges[side]) > 1 / torch.finfo(torch.float32).eps:
                yield (
                    f"{side} {self.gains[side].name} spreads singular values over a factor of {spread:.1g}, more "
                    "than float32 resolves, so weak directions are lost; use a less steep gain"
                )

    def _rounding_warnings(self) -> Iterator[str]:
        for each in self.numerics:
            shares: dict[Side, float] = {"online": each.rounding_online, "target": each.rounding_target}
            for side, share in shares.items():
                if share > _MOST_ROUNDING and side in self.gains:
                    yield (
                        f"{100 * share:.0f}% of the {side} output's energy is rounding if the batch arrives in "
                        f"{each.dtype}; train with --precision 32-true, or use a less steep gain"
                    )
            if each.largest > 1:
                yield (
                    f"an output may reach {each.largest:.2g} times the largest {each.dtype} number (the filter "
                    "returns float32, but a layer behind it may not); bound the gain"
                )


def assess(online: str | Gain | None, target: str | Gain | None, reference: Reference) -> Assessment:
    """Assess a pair of filters without training.

    The flow is that of the linear model with the cosine loss (`theory.linear_flow`), from an encoder that gives
    the reference spectrum on white inputs. Views share x^2 / (x^2 + n) of a direction, where n is a quarter of the
    mean energy, so they share more of the strong directions. The flow is followed for 5 units of time; a unit is
    the encoder's energy, sum x^2.

    Args:
        online: the gain on the online branch, its name or its formula; None or "identity" for no filter.
        target: the gain on the target branch, in the same forms.
        reference: the spectrum, see `reference_spectrum`.

    Raises:
        UserError: both branches are without a filter, or a name or formula is not a gain on this spectrum; the
            message says why and what to write instead.

    Example:
        >>> from rankgap.theory import reference_spectrum
        >>> found = assess("power:0.5", None, reference_spectrum())
        >>> found.kind, f"{found.erank_online:.1f} -> {found.erank_target:.1f}"
        ('low-pass', '15.1 -> 74.6')
    """
    first, second = (_gain(choice) for choice in (online, target))
    if first is None and second is None:
        raise UserError("a design needs a filter: give a gain for --online, for --target, or for both")
    x = reference.x
    keep = x > rank_tolerance(reference.rows, reference.columns, torch.float32) * x[0]
    kept = x[keep]
    g, h = (_on(gain, x, keep) for gain in (first, second))
    passes = keep & (h > 0)
    unit = float(kept.square().sum())
    shared = kept.square() / (kept.square() + _NOISE * kept.square().mean())

    def follow(row: Flow) -> FlowResult:
        return linear_flow(row, kept, shared, 1 - shared, unit * _TIMES, partial=True)

    sides: dict[Side, Gain | None] = {"online": first, "target": second}
    return Assessment(
        reference=reference,
        online=first,
        target=second,
        gain_online=g,
        gain_target=h,
        null=int((~keep).sum()),
        score=float(low_pass_score(x[passes], (g / h)[passes])),
        lemmas={side: filter_lemma(kept, gain) for side, gain in sides.items() if gain is not None},
        flow=follow(Flow(online=first, target=second)),
        baseline=follow(Flow()),
        unit=unit,
        numerics=tuple(_numerics(dtype, reference, first, second) for dtype in DTYPES),
    )


def _gain(choice: str | Gain | None) -> Gain | None:
    if choice is None or choice == "identity":
        return None
    return choice if isinstance(choice, Gain) else parse_gain(choice)


def _on(gain: Gain | None, x: Tensor, keep: Tensor) -> Tensor:
    """A gain's values (R,), checked where directions are kept and 0 elsewhere; ones for the identity."""
    if gain is None:
        return torch.ones_like(x)
    values = torch.zeros_like(x)
    values[keep] = gain.check(x[keep])
    return values


def _numerics(dtype: torch.dtype, reference: Reference, online: Gain | None, target: Gain | None) -> Numerics:
    """Rounding and range, for a batch whose entries were rounded to a dtype.

    Rounding errs by at most eps / 2 relative to the power of two below an entry. If the entries' logarithms are
    spread evenly, its mean square is (eps^2 / 12) (3/8) / ln 2 of theirs. It lies in all R directions alike, null
    ones included, which are then no longer null.
    """
    x, eps = reference.x, torch.finfo(dtype).eps
    noise = eps * eps / 12 * (3 / 8 / math.log(2)) * x.square().sum() / len(x)
    seen = (x.square() + noise).sqrt()
    keep = seen > rank_tolerance(reference.rows, reference.columns, dtype) * seen[0]
    shares, largest = [], 0.0
    for gain in (online, target):
        g = torch.ones_like(x) if gain is None else gain(seen).clamp_max(LARGEST)
        g = torch.where(keep, g, 0.0).square()
        shares.append(float((noise * g).sum() / (seen.square() * g).sum()))
        largest = max(largest, float((seen * g.sqrt()).max()) * math.sqrt(reference.rows))
    return Numerics(str(dtype).removeprefix("torch."), shares[0], shares[1], largest / torch.finfo(dtype).max)
