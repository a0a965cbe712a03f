"""Gains of spectral filters: by name, as a formula in s, or any monotone function; and what each must be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankgap.errors import UserError, unknown
from rankgap.filters.formulas import LARGEST, Expression, is_expression
from rankgap.spectra.effective_rank import exp_entropy

Scale = Literal["rms", "raw"]  # what a gain acts on: s / sqrt(N), or s

GRID = torch.logspace(-5, 4, 1801, dtype=torch.float64)  # where a gain of one's own is looked at: 200 a decade


_SAME = 1e-9  # values closer than this, relatively, count as equal: rounding is no reversal


@dataclass(frozen=True, slots=True)
class Gain:
    """A gain g on singular values x > 0.

    Args:
        name: how the user writes it.
        function: g, elementwise; the null space never reaches it.
        is_low_pass: g is non-decreasing (lowers the effective rank: it belongs on the online branch).
        is_high_pass: g is non-increasing (raises it where x g(x) is non-decreasing: it belongs on the target).
        power: p where g(x) = x^p, else None.
        elementwise: whether g(x) depends on x alone, and not on the spectrum that it is part of.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    is_low_pass: bool
    is_high_pass: bool
    power: float | None = None
    elementwise: bool = True

    @property
    def gram_power(self) -> int:
        """The m >= 1 with g(x) = x^2m, the Gram matrix's own m-th power, which needs no solver; 0 for none."""
        even = self.power is not None and self.power > 0 and self.power % 2 == 0
        return int(self.power or 0) // 2 if even else 0

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), elementwise."""
        return self.function(x)

    @classmethod
    def of(cls, name: str, function: Callable[[Tensor], Tensor]) -> Gain:
        """A gain from any monotone function; put into `GAINS`, it has a name everywhere.

        It is looked at on 1e-5 <= x <= 1e4, on a logarithmic grid: what it does between the points or beyond
        them is not seen (`check` looks at a spectrum).

        Args:
            name: how to call it.
            function: g, elementwise.

        Raises:
            UserError: as `checked_gain`.

        Example:
            >>> Gain.of("saturating", lambda x: x / (x + 1)).is_low_pass
            True
        """
        _, low, high = checked_gain(name, function, GRID)
        return cls(name, function, is_low_pass=low, is_high_pass=high)

    def on(self, x: Tensor, keep: Tensor) -> Tensor:
        """g(x) (..., R) of a spectrum, 0 in the null space: where `keep` (..., R), bool, is False."""
        return torch.where(keep, self(torch.where(keep, x, 0.0)), 0.0)

    def check(self, x: Tensor) -> Tensor:
        """Values on a spectrum x > 0 (R,), float64; a `UserError` where it is no gain there (`checked_gain`)."""
        return checked_gain(self.name, self.function, x)[0]


@dataclass(frozen=True, slots=True)
class AutoPower:
    """x^p with p in [-1, 0] chosen from the spectrum: `auto`, for the target branch.

    The exponent decides how much of the rank difference that whitening would make, erank(x^0) - erank(x), a filter
    makes: none at p = 0, all at p = -1, monotone between (the filter lemma). p is the one nearest to `preferred`
    for which that share lies in [low, high]: where a spectrum is so steep that a fixed power hardly lifts it the
    filter is stronger, where it is nearly flat weaker.

    Args:
        low: the least share.
        high: the largest.
        preferred: the exponent where the band allows it.
    """

    low: float = 0.5
    high: float = 0.9
    preferred: float = -0.5

    def exponent(self, x: Tensor) -> Tensor:
        """P (..., 1) for spectra x (..., R); what is 0 in them is the null space."""
        keep = x > 0
        logs = torch.where(keep, x, 1.0).double().log()

        def erank(p: Tensor) -> Tensor:
            energy = torch.where(keep, (2 * (1 + p) * logs).exp(), 0.0)
            return exp_entropy(energy / energy.sum(-1, keepdim=True)).unsqueeze(-1)

        none = torch.zeros_like(logs[..., :1])
        least, most = erank(none), erank(none - 1)

        def reaching(share: float) -> Tensor:
            """The exponent of a share, by bisection: 2^-20 is finer than any spectrum is known."""
            wanted = least + share * (most - least)
            weak, strong = none, none - 1
            for _ in range(20):
                middle = (weak + strong) / 2
                enough = erank(middle) >= wanted
                weak, strong = torch.where(enough, weak, middle), torch.where(enough, middle, strong)
            return (weak + strong) / 2

        return (none + self.preferred).clamp(reaching(self.high), reaching(self.low))

    def __call__(self, x: Tensor) -> Tensor:
        """x^p (..., R), in the dtype of `x`; infinite in the null space."""
        return x.pow(self.exponent(x).to(x.dtype))


def _log(x: Tensor) -> Tensor:
    return x.log().clamp_min(0)  # below 1 the authors' |ln x| rises again: a high-pass


def _log1p2(x: Tensor) -> Tensor:
    return x.square().log1p()


GAINS: dict[str, Gain] = {
    "log": Gain("log", _log, is_low_pass=True, is_high_pass=False),
    "log1p": Gain("log1p", torch.log1p, is_low_pass=True, is_high_pass=False),
    "log1p2": Gain("log1p2", _log1p2, is_low_pass=True, is_high_pass=False),
    "auto": Gain("auto", AutoPower(), is_low_pass=False, is_high_pass=True, elementwise=False),
}


def parse_gain(spec: str, *, beside: Iterable[str] = ()) -> Gain:
    """A gain by name: `power:p` is x^p, `log` is max(ln x, 0), `log1p` is ln(1 + x), `log1p2` is ln(1 + x^2).

    The RDM paper's range: online p in {0.3 .. 2} and the three logs; target p in {-0.3, -0.5, -0.7, -1}, where
    -1 makes all non-zero singular values equal (whitening). `auto` chooses the exponent of a target filter from
    each spectrum (`AutoPower`). Or a formula of your own, in s: "s/(s+0.1)" (see
    `Expression`, and `Gain.of` for what is checked).

    Args:
        spec: the name or formula.
        beside: what else may stand where this one was found, for the error of an unknown name.

    Raises:
        UserError: an unknown name, with the nearest one there is, an exponent that is not a finite number, or a
            formula that is no gain.

    Example:
        >>> parse_gain("power:0.5")(torch.tensor([4.0, 1.0]))
        tensor([2., 1.])
    """
    if spec in GAINS:
        return GAINS[spec]
    if is_expression(spec):
        return Gain.of(spec, Expression(spec))
    name, _, exponent = spec.partition(":")
    if name != "power":
        raise unknown("map" if beside else "gain", spec, [*GAINS, "power:p", *beside])
    try:
        p = float(exponent)
    except ValueError:
        p = math.nan
    if not math.isfinite(p):
        raise UserError(f"gain {spec!r}: expected power:p with a finite number p, such as power:0.5 or power:-0.5")
    return Gain(
        f"power:{p:g}", functools.partial(torch.pow, exponent=p), is_low_pass=p >= 0, is_high_pass=p <= 0, power=p
    )


def checked_gain(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, bool, bool]:
    """A gain's values on a spectrum, and its kind there.

    Args:
        name: what to call the gain in an error.
        function: g, elementwise.
        x: singular values as the gain sees them (R,), above 0, in any order.

    Returns:
        g(x) (R,) float64; whether g is non-decreasing on it; whether non-increasing (both where it is constant).

    Raises:
        UserError: the spectrum is none; or the gain is no elementwise function, negative, not a number, not
            monotone, zero throughout, or g(x) or x g(x) beyond float32. It says at which s, with the value, and
            what to write instead.
    """
    if x.ndim != 1 or not len(x) or not ((x > 0) & x.isfinite()).all():
        raise UserError(f"gain {name!r}: a spectrum is a row of finite numbers above 0, got {_shown(x)}")
    x = x.double()
    values = function(x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"gain {name!r} must give a tensor of one value for each of {len(x)}, got {got}")
    values = values.double()

    def first(bad: Tensor) -> str:
        i = int(bad.nonzero()[0])
        return f"at s = {float(x[i]):.4g}: it gives {float(values[i]):.4g}"

    if (bad := values.isnan()).any():
        raise UserError(f"gain {name!r} is not a number {first(bad)}; keep s where it is defined, as max(s, 1)")
    if (bad := (values.abs() > LARGEST) | (values.abs() * x > LARGEST)).any():
        raise UserError(
            f"gain {name!r} overflows float32 {first(bad)}; bound it: min(s, ...) for s, or a lower power"
        )
    if (bad := values < 0).any():
        raise UserError(f"gain {name!r} is negative {first(bad)}; a gain is at least 0: clip it, max({name}, 0)")
    if not values.any():
        raise UserError(
            f"gain {name!r} is 0 at every s from {float(x.min()):.4g} to {float(x.max()):.4g}: nothing passes; "
            "scale s up in it, or take log1p"
        )
    low, high, turn = _monotone(x, values)
    if turn is not None:
        raise UserError(
            f"gain {name!r} is not monotone: it turns at s = {turn:.4g}; a low-pass never falls and a high-pass "
            f"never rises: put min(s, {turn:.4g}) or max(s, {turn:.4g}) in place of s"
        )
    return values, low, high


def _monotone(x: Tensor, values: Tensor) -> tuple[bool, bool, float | None]:
    """Whether values never fall along rising x, never rise, and where they first turn."""
    x, order = x.sort()
    values = values[order]
    step = values.diff()
    real = step.abs() > _SAME * torch.maximum(values[1:], values[:-1])
    rises, falls = real & (step > 0), real & (step < 0)
    if not (rises.any() and falls.any()):
        return not falls.any(), not rises.any(), None
    turn = max(int(rises.nonzero()[0]), int(falls.nonzero()[0]))
    return False, False, float(x[turn])


def _shown(x: Tensor) -> str:
    return f"{x.tolist()[:4]} of shape {tuple(x.shape)}" if x.numel() else "none"
