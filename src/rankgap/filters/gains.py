"""Gains of spectral filters: a name, a formula in s, or any monotone function of your own.

Shapes: R singular values, `...` leading batch dimensions (views).
"""

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
from rankgap.spectra.float64 import double

Scale = Literal["rms", "raw"]  # a gain acts on s / sqrt(N), or on s itself

GRID = torch.logspace(-5, 4, 1801, dtype=torch.float64)  # where `Gain.of` samples a function: 200 points a decade

_SAME = 1e-9  # relative difference up to which two values count as equal, so that rounding is not a reversal
_STEEPEST = 1000.0  # power; long before it, only one direction is left in float32
_HALVINGS = 20  # of the exponent's interval [-1, 0]: 2^-20 is finer than any spectrum is known


@dataclass(frozen=True, slots=True)
class Gain:
    """A gain g on singular values x > 0.

    Args:
        name: the gain as the user writes it.
        function: g, elementwise; it is never applied to the null space.
        is_low_pass: g is non-decreasing. It lowers the effective rank and belongs on the online branch.
        is_high_pass: g is non-increasing. Where x g(x) is non-decreasing it raises the effective rank, and belongs
            on the target branch.
        power: p where g(x) = x^p, else None.
        elementwise: whether g(x) depends on x alone, and not on the spectrum that x belongs to.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    is_low_pass: bool
    is_high_pass: bool
    power: float | None = None
    elementwise: bool = True

    @property
    def gram_power(self) -> int:
        """The m >= 1 with g(x) = x^2m, for which the filter is the m-th power of the Gram matrix; 0 if none."""
        if self.power is None or self.power <= 0 or self.power % 2 != 0:
            return 0
        return int(self.power) // 2

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), elementwise."""
        return self.function(x)

    @classmethod
    def of(cls, name: str, function: Callable[[Tensor], Tensor]) -> Gain:
        """A gain from any monotone function. Once it is put into `GAINS`, its name works everywhere.

        The function is sampled on a logarithmic grid over 1e-5 <= x <= 1e4. Its behaviour between the points and
        beyond them is not checked (`check` looks at a spectrum).

        Args:
            name: the name to give it.
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
        """g(x) (..., R) on a spectrum; 0 in the null space, which is where `keep` (..., R), bool, is False."""
        return torch.where(keep, self(torch.where(keep, x, 0.0)), 0.0)

    def check(self, x: Tensor) -> Tensor:
        """g(x) (R,), float64, on a spectrum x > 0 (R,).

        Raises:
            UserError: as `checked_gain`.
        """
        return checked_gain(self.name, self.function, x)[0]


@dataclass(frozen=True, slots=True)
class AutoPower:
    """x^p with p in [-1, 0] chosen from the spectrum: the gain `auto`, for the target branch.

    Whitening (p = -1) would create the rank difference erank(x^0) - erank(x). The exponent sets how much of that
    difference the filter creates: none at p = 0, all of it at p = -1, and more the lower p is (the filter lemma).
    p is the exponent nearest to `preferred` for which this share lies in [low, high]. So the filter is stronger on
    a steep spectrum, which a fixed power would hardly lift, and weaker on a nearly flat one.

    Args:
        low: the smallest share.
        high: the largest share.
        preferred: the exponent to use where it falls inside the band.
    """

    low: float = 0.5
    high: float = 0.9
    preferred: float = -0.5

    def exponent(self, x: Tensor) -> Tensor:
        """The exponent p (..., 1), float64, of spectra x (..., R) in which 0 marks the null space."""
        x = double(x)
        keep = x > 0
        logs = torch.where(keep, x, 1.0).log()

        def erank(p: Tensor) -> Tensor:
            energy = torch.where(keep, (2 * (1 + p) * logs).exp(), 0.0)
            return exp_entropy(energy / energy.sum(-1, keepdim=True)).unsqueeze(-1)

        identity = torch.zeros_like(logs[..., :1])  # p = 0
        whitening = identity - 1
        least, most = erank(identity), erank(whitening)

        def reaching(share: float) -> Tensor:
            """The exponent that gives a share, by bisection."""
            wanted = least + share * (most - least)
            weak, strong = identity, whitening
            for _ in range(_HALVINGS):
                middle = (weak + strong) / 2
                enough = erank(middle) >= wanted
                weak, strong = torch.where(enough, weak, middle), torch.where(enough, middle, strong)
            return (weak + strong) / 2

        return (identity + self.preferred).clamp(reaching(self.high), reaching(self.low))

    def __call__(self, x: Tensor) -> Tensor:
        """x^p (..., R), in the dtype of `x`; infinite in the null space."""
        return x.pow(self.exponent(x).to(x.dtype))


def _log(x: Tensor) -> Tensor:
    return x.log().clamp_min(0)  # the authors take |ln x|, which rises again below 1: a high-pass there


def _log1p2(x: Tensor) -> Tensor:
    return x.square().log1p()


GAINS: dict[str, Gain] = {
    "log": Gain("log", _log, is_low_pass=True, is_high_pass=False),
    "log1p": Gain("log1p", torch.log1p, is_low_pass=True, is_high_pass=False),
    "log1p2": Gain("log1p2", _log1p2, is_low_pass=True, is_high_pass=False),
    "auto": Gain("auto", AutoPower(), is_low_pass=False, is_high_pass=True, elementwise=False),
}


def parse_gain(spec: str, *, beside: Iterable[str] = ()) -> Gain:
    """A gain from its name or formula.

    The names are `power:p` for x^p, `log` for max(ln x, 0), `log1p` for ln(1 + x), `log1p2` for ln(1 + x^2), and
    `auto`, a target filter that chooses its exponent from each spectrum (`AutoPower`). Anything else is read as a
    formula in s, such as "s/(s+0.1)": see `Expression` for the syntax, and `Gain.of` for the checks.

    The RDM paper uses p from 0.3 to 2 and the three logs on the online branch, and p in {-0.3, -0.5, -0.7, -1} on
    the target branch, where -1 makes all non-zero singular values equal (whitening).

    Args:
        spec: the name or the formula.
        beside: other names that would be valid in the same place, for the error about an unknown name.

    Raises:
        UserError: the name is unknown (the message suggests the nearest one), the exponent is not a finite number
            from -1000 to 1000, or the formula is not a gain.

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
    if not abs(p) <= _STEEPEST:
        raise UserError(
            f"gain {spec!r}: expected power:p with a finite p from -{_STEEPEST:g} to {_STEEPEST:g}, such as "
            "power:0.5 or power:-0.5"
        )
    return Gain(
        f"power:{p:g}", functools.partial(torch.pow, exponent=p), is_low_pass=p >= 0, is_high_pass=p <= 0, power=p
    )


def checked_gain(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, bool, bool]:
    """A gain's values on a spectrum, and whether it is a low-pass or a high-pass there.

    Args:
        name: the gain's name, for errors.
        function: g, elementwise.
        x: singular values on the gain's scale (R,), above 0, in any order.

    Returns:
        g(x) (R,) float64, whether g is non-decreasing on x, and whether it is non-increasing on x. Both are true
        of a constant.

    Raises:
        UserError: x is not a row of finite numbers above 0; or the function does not return one value for each x,
            or is negative, not a number, not monotone or zero throughout, or g(x) or x g(x) overflows float32. The
            message gives the s and the value at fault, and what to write instead.
    """
    if x.ndim != 1 or not len(x) or not ((x > 0) & x.isfinite()).all():
        raise UserError(f"gain {name!r}: expected a spectrum (R,) of finite numbers above 0, got {_shown(x)}")
    x = double(x)
    values = function(x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(
            f"gain {name!r} must map {len(x)} singular values to a tensor of {len(x)} values, got {got}"
        )
    values = double(values)

    def first(bad: Tensor) -> str:
        i = int(bad.nonzero()[0])
        return f"at s = {float(x[i]):.4g}: it gives {float(values[i]):.4g}"

    if (bad := values.isnan()).any():
        raise UserError(
            f"gain {name!r} is not a number {first(bad)}; keep s where the gain is defined, for example max(s, 1)"
        )
    if (bad := (values.abs() > LARGEST) | (values.abs() * x > LARGEST)).any():
        if bad[x.argmax()]:
            cure = "put min(s, ...) in place of s, or lower its power"
        elif bad[x.argmin()]:
            cure = "put max(s, ...) in place of s, or raise its power"
        else:
            cure = "it has a pole there, so keep the denominator above 0"
        raise UserError(f"gain {name!r} overflows float32 {first(bad)}; {cure}")
    if (bad := values < 0).any():
        raise UserError(f"gain {name!r} is negative {first(bad)}; a gain is at least 0: clip it, max({name}, 0)")
    if not values.any():
        raise UserError(
            f"gain {name!r} is 0 at every s from {float(x.min()):.4g} to {float(x.max()):.4g}, so nothing passes; "
            "scale s up in it, or use log1p"
        )
    low, high, turn = _monotone(x, values)
    if turn is not None:
        raise UserError(
            f"gain {name!r} is not monotone: it turns at s = {turn:.4g}; a low-pass never falls and a high-pass "
            f"never rises, so put min(s, {turn:.4g}) or max(s, {turn:.4g}) in place of s"
        )
    return values, low, high


def _monotone(x: Tensor, values: Tensor) -> tuple[bool, bool, float | None]:
    """Whether values never fall along rising x, whether they never rise, and where they first turn, if they do."""
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
    values = x.tolist()[:4] if x.numel() else "an empty tensor"
    return f"{values} of shape {tuple(x.shape)}"
