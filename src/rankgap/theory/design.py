"""A pair of filters before any training: its kind, rank difference, growth in the linear flow, and numerics.

x = s / sqrt(N), R = min(N, D) of them, are what gains act on: s are the singular values of the projector's output
Z (N, D).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.filters.formulas import LARGEST
from rankgap.filters.gains import AutoPower, Gain, parse_gain
from rankgap.model.methods import design, is_predictor
from rankgap.run.folder import RunFolder
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.gram import rank_tolerance
from rankgap.spectra.pair import low_pass_score
from rankgap.theory import Flow, FlowResult, Lemma, filter_lemma, linear_flow

UNITS = 5  # of time, that the flow is followed
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NOISE = 0.25  # of what augmentation adds to a direction, as a share of the mean energy
_TOO_MUCH = 0.01  # of rounding in a filtered batch's energy


class Reference(NamedTuple):
    """A spectrum to design on.

    Attributes:
        name: where it is from.
        x: singular values of Z over sqrt(N) (R,), descending, float64.
        rows: N.
        columns: D.
    """

    name: str
    x: Tensor
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Numerics:
    """What becomes of a batch that arrives in a dtype (the filter itself runs in float32).

    Args:
        dtype: its name.
        rounding_online: the share of P's energy that is rounding of Z.
        rounding_target: of T's.
        largest: bound of an entry of P or T over the largest number of the dtype.
    """

    dtype: str
    rounding_online: float
    rounding_target: float
    largest: float


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What a pair of filters would do on a reference spectrum.

    Args:
        reference: the spectrum.
        online: the online gain; None is the identity.
        target: the target's.
        gain_online: its values on the spectrum (R,), 0 in the null space; ones for the identity.
        gain_target: likewise.
        null: how many directions are null.
        score: `low_pass_score` of |P v| / |T v| along Z's directions v: 1, dimensions grow; -1, they collapse.
        lemmas: what the filter lemma says of each filter, by branch.
        flow: the linear model's.
        baseline: the same without filters.
        unit: of the flow's time, sum x^2.
        numerics: by dtype of the incoming batch.
    """

    reference: Reference
    online: Gain | None
    target: Gain | None
    gain_online: Tensor
    gain_target: Tensor
    null: int
    score: float
    lemmas: dict[str, Lemma]
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
        """Effective rank of Z, of the correlation, as are the others."""
        return float(effective_rank_of(self.reference.x))

    @property
    def erank_online(self) -> float:
        """Of P."""
        return float(effective_rank_of(self.reference.x * self.gain_online))

    @property
    def erank_target(self) -> float:
        """Of T."""
        return float(effective_rank_of(self.reference.x * self.gain_target))

    @property
    def rank_difference(self) -> float:
        """The target's erank minus the online one's: above 0 dimensions grow."""
        return self.erank_target - self.erank_online

    @property
    def rate(self) -> float:
        """How fast the online erank grows at the start of the flow, a unit of time."""
        return float(self.flow.erank_online[1] - self.flow.erank_online[0]) / float(self.flow.times[1]) * self.unit

    @property
    def dies_out(self) -> bool:
        """Whether directions die out in finite time, where the flow ends early."""
        return len(self.flow.times) < len(self.baseline.times)

    @property
    def ranges(self) -> dict[str, float]:
        """The strongest over the weakest singular value that is not 0, of Z and of the filtered branches."""
        kept = self.kept
        spectra = {"Z": kept} | {side: kept * g[: len(kept)] for side, g in self._values.items()}
        return {name: float(s.max() / s[s > 0].min()) for name, s in spectra.items()}

    @property
    def _values(self) -> dict[str, Tensor]:
        both = {"online": self.gain_online, "target": self.gain_target}
        return {side: g for side, g in both.items() if side in self.gains}

    @property
    def title(self) -> str:
        """The pair, as the command line has it."""
        return " ".join(f"{side} {gain.name}" for side, gain in self.gains.items())

    @property
    def gains(self) -> dict[str, Gain]:
        """The filters there are, by branch."""
        both = {"online": self.online, "target": self.target}
        return {side: gain for side, gain in both.items() if gain is not None}

    @property
    def names(self) -> dict[str, str]:
        """What the filters are on this spectrum, by branch: `auto` comes with the exponent that it chooses."""
        return {
            side: f"{gain.name}, here power:{float(gain.function.exponent(self.kept)):.2f}"
            if isinstance(gain.function, AutoPower)
            else gain.name
            for side, gain in self.gains.items()
        }

    @property
    def kind(self) -> str:
        """The pair's kind: what the online branch is, measured against the target."""
        if abs(self.score) < 1e-9:
            return "neither low- nor high-pass"
        name = "low-pass" if self.score > 0 else "high-pass"
        return name if abs(self.score) > 1 - 1e-9 else f"mostly {name}"

    def warnings(self) -> list[str]:
        """What speaks against the pair, each with what to change."""
        found = []
        if self.rank_difference <= 1e-9:
            found.append(
                f"the rank difference is {self.rank_difference:+.2f}: nothing makes dimensions grow; a low-pass "
                "belongs on the online branch, a high-pass on the target"
            )
        elif self.flow.erank_online[-1] < self.flow.erank_online[0]:
            found.append(
                f"the rank difference is {self.rank_difference:+.2f}, and yet the online rank falls in the linear "
                "flow: alignment prefers what views share, and the pair is too weak against that; take it steeper"
            )
        for side, lemma in self.lemmas.items():
            if not lemma.premise:
                found.append(
                    f"{side} {self.gains[side].name}: s g(s) falls somewhere on this spectrum: strong and weak "
                    "directions change places, and the filter lemma promises nothing; powers from -1 up keep order"
                )
        for side, g in self._values.items():
            if closed := int((g == 0).sum()) - self.null:
                found.append(
                    f"{side} {self.gains[side].name} is 0 in {closed} of {len(g) - self.null} directions, without "
                    "the null ones: they neither pass nor learn; log1p lets all through"
                )
            if (spread := self.ranges[side]) > 1 / torch.finfo(torch.float32).eps:
                found.append(
                    f"{side} {self.gains[side].name} spreads singular values over a factor of {spread:.1g}, more "
                    "than float32 resolves: weak directions are lost; take it less steep"
                )
        for each in self.numerics:
            for side, share in (("online", each.rounding_online), ("target", each.rounding_target)):
                if share > _TOO_MUCH and side in self.gains:
                    found.append(
                        f"{100 * share:.0f}% of the {side} output's energy is rounding where the batch arrives in "
                        f"{each.dtype}: train with --precision 32-true, or take a gain that is less steep"
                    )
            if each.largest > 1:
                found.append(
                    f"an output may reach {each.largest:.2g} times the largest {each.dtype} (the filter gives "
                    "float32; a layer behind it may not): bound the gain"
                )
        return found


def assess(online: str | Gain | None, target: str | Gain | None, reference: Reference) -> Assessment:
    """Look at a pair of filters without training.

    The flow is the linear model's with the cosine loss (`theory.linear_flow`), from an encoder that gives this
    spectrum on white inputs. Views share x^2 / (x^2 + n) of a direction, with n a quarter of the mean energy: more
    of the strong ones. It is followed for 5 units of time, each the encoder's energy, sum x^2.

    Args:
        online: a gain or its name or formula; None or "identity": no filter there.
        target: likewise.
        reference: see `reference_spectrum`.

    Raises:
        UserError: no filter at all, or a gain that is none on this spectrum; says why and what to write.

    Example:
        >>> found = assess("power:0.5", None, reference_spectrum())
        >>> found.kind, f"{found.erank_online:.1f} -> {found.erank_target:.1f}"
        ('low-pass', '15.1 -> 74.6')
    """
    first, second = (_gain(choice) for choice in (online, target))
    if first is None and second is None:
        raise UserError("a design takes --online GAIN, --target GAIN or both; there is none to look at")
    x = reference.x
    keep = x > rank_tolerance(reference.rows, reference.columns, torch.float32) * x[0]
    kept = x[keep]
    g, h = (_on(gain, x, keep) for gain in (first, second))
    passes = keep & (h > 0)
    unit = float(kept.square().sum())
    shared = kept.square() / (kept.square() + _NOISE * kept.square().mean())
    times = unit * torch.cat([torch.tensor([0.0, 0.005]), torch.linspace(0.05, UNITS, 100)]).double()

    def follow(row: Flow) -> FlowResult:
        return linear_flow(row, kept, shared, 1 - shared, times, partial=True)

    sides = {"online": first, "target": second}
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
    if choice in (None, "identity") or isinstance(choice, Gain):
        return choice if isinstance(choice, Gain) else None
    if is_predictor(str(choice)):
        raise UserError(f"{choice} is set or trained along a run: a design takes a gain, such as power:0.5")
    return parse_gain(str(choice))


def _on(gain: Gain | None, x: Tensor, keep: Tensor) -> Tensor:
    """A gain's values, checked where directions are kept, 0 elsewhere."""
    values = torch.ones_like(x)
    if gain is not None:
        values = torch.zeros_like(x)
        values[keep] = gain.check(x[keep])
    return values


def _numerics(dtype: torch.dtype, reference: Reference, online: Gain | None, target: Gain | None) -> Numerics:
    """Rounding and range, for a batch whose entries were rounded to a dtype.

    Rounding errs by eps / 2 at most, relative to the power of two below an entry; over entries whose logarithms
    are spread evenly its mean square is (eps^2 / 12) (3/8) / ln 2 of theirs. It lies in all R directions alike,
    also in null ones, which then are null no longer.
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


def reference_spectrum(source: str | None = None) -> Reference:
    """The spectrum to design on.

    Args:
        source: a run folder (its last snapshot in spectra.jsonl), a file of numbers, or numbers, as "4,3,2,1":
            singular values over sqrt(N). By default 256 batch-normed columns in a batch of 256 whose eigenvalues
            fall as 1/j, as healthy features' do (alpha-ReQ: Agrawal et al. 2022).

    Raises:
        UserError: there is no such run or file, a run without spectra, or what is there are no numbers.
    """
    if source is None:
        energy = 1 / torch.arange(1, 257, dtype=torch.float64)
        return Reference("256 directions, eigenvalues 1/j", (256 * energy / energy.sum()).sqrt(), 256, 256)
    path = Path(source)
    if path.is_dir():
        return _of_run(RunFolder(path))
    text = path.read_text() if path.is_file() else source
    try:
        numbers = [float(part) for part in re.split(r"[\s,]+", text.strip(" \n\t,[]"))]
    except ValueError as error:
        expected = "a run folder, a file of numbers, or numbers such as 4,3,2,1"
        raise UserError(f"--spectrum {source!r}: expected {expected}; {error}") from error
    x = torch.tensor(numbers, dtype=torch.float64)
    if len(x) < 2 or not (x.isfinite() & (x >= 0)).all() or not x.any():
        raise UserError(
            f"--spectrum {source!r}: a spectrum is two or more finite numbers at or above 0, not all 0; "
            f"got {x[:4].tolist()}"
        )
    return Reference(path.name if path.is_file() else "given", x.sort(descending=True).values, len(x), len(x))


def _of_run(folder: RunFolder) -> Reference:
    """The last spectrum of Z that a run kept: of a branch without a map, or else of its target."""
    config = folder.config()
    if not (snapshots := folder.spectra()):
        raise UserError(f"{folder.path} has no spectra yet: let it train a step, or take another run")
    run, recipe = config["run"], config["recipe"]
    row = design(run["method"], online=run["online"], target=run["target"])
    s = snapshots[-1].online if row.target and not row.online else snapshots[-1].target
    note = f", after {' and '.join(row.target)}" if row.target and row.online else ""
    rows = len(recipe["views"]) * run["batch_size"] // run["devices"]
    x = torch.tensor(s, dtype=torch.float64) / math.sqrt(rows)
    if not x.any():
        raise UserError(f"{folder.path}: the last spectrum is all 0, the run has collapsed; take another run")
    return Reference(
        f"{folder.name} at step {snapshots[-1].step:,}{note}", x, rows, recipe["heads"]["projector"][-1]
    )
