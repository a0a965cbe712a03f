"""Majorisation and the two lemmas, as inequalities whose sides are given and can be checked.

Shapes: R directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.filters.gains import Gain, checked_gain, parse_gain
from rankgap.spectra.effective_rank import Convention, effective_rank_of

_ROUNDING = 1e-9


def majorises(p: Tensor, q: Tensor, tol: float = 1e-12) -> bool:
    """Whether p majorises q: the k largest of p sum to no less than those of q, for every k, at equal sums.

    Then every Schur-concave number of p, the entropy above all, is no larger than that of q.

    Args:
        p: shares (R,), in any order; they are divided by their sum.
        q: likewise.
        tol: by which a partial sum may fall short.

    Raises:
        UserError: these are no two rows of shares, of one length.

    Example:
        >>> majorises(torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5]))
        True
    """
    if p.shape != q.shape:
        raise UserError(f"majorisation compares two rows of one length, got {tuple(p.shape)} and {tuple(q.shape)}")
    first, second = (_shares(row).sort(descending=True).values.cumsum(0) for row in (p, q))
    return bool((first - second >= -tol).all())


def _shares(p: Tensor) -> Tensor:
    if p.ndim != 1 or not len(p) or not (p.isfinite() & (p >= 0)).all() or not p.any():
        raise UserError(
            "shares are a row of finite numbers at or above 0, not all 0; "
            f"got {p.flatten().tolist()[:4]} of shape {tuple(p.shape)}"
        )
    return p.double() / p.double().sum()


@dataclass(frozen=True, slots=True)
class Lemma:
    """An inequality left >= right, with what it presumes.

    Args:
        claim: in words.
        left: the side that is claimed to be no smaller.
        right: the other.
        premise: whether what the lemma presumes is so; where it is not, nothing is claimed.
    """

    claim: str
    left: float
    right: float
    premise: bool

    @property
    def margin(self) -> float:
        """Left minus right."""
        return self.left - self.right

    @property
    def holds(self) -> bool:
        """Whether it is true here, but for rounding (it is where the premise is not)."""
        return not self.premise or self.margin >= -_ROUNDING * max(abs(self.left), abs(self.right), 1.0)


def filter_lemma(x: Tensor, gain: str | Gain, of: Convention = "correlation") -> Lemma:
    """The filter lemma: what a gain does to the effective rank of a spectrum.

    g >= 0 non-decreasing: the filtered spectrum majorises the first, and the rank falls. g non-increasing and
    x g(x) non-decreasing: it is majorised, and the rank rises. A high-pass so steep that x g(x) falls somewhere
    reverses the order of directions, and may do either: the premise is False.

    Args:
        x: singular values as the gain sees them (R,), at or above 0 (what is 0 stays so).
        gain: a `Gain` or its name.
        of: the convention of the effective rank, see `spectra.effective_rank_of`.

    Returns:
        Effective ranks before and after, the one that is claimed to be larger on the left.

    Raises:
        UserError: no spectrum, or a gain that is none on it (not monotone, say).

    Example:
        >>> lemma = filter_lemma(torch.tensor([3.0, 2.0, 1.0]), "power:0.5")
        >>> lemma.claim, lemma.holds, f"{lemma.left:.2f} >= {lemma.right:.2f}"
        ('the rank falls', True, '2.29 >= 1.91')
    """
    gain = parse_gain(gain) if isinstance(gain, str) else gain
    x = x[x != 0].double().sort().values
    g, low, _ = checked_gain(gain.name, gain.function, x)
    before, after = float(effective_rank_of(x, of)), float(effective_rank_of(x * g, of))
    if low:
        return Lemma("the rank falls", before, after, premise=True)
    steps = (x * g).diff()
    return Lemma("the rank rises", after, before, premise=bool((steps >= -_ROUNDING * (x * g)[1:]).all()))


def step_lemma(p: Tensor, q: Tensor, t: float) -> tuple[Lemma, Lemma]:
    """The step lemma: a step from the online spectrum towards the target's, in one eigenspace.

    Entropy H is concave, so H((1-t) p + t q) >= (1-t) H(p) + t H(q). The second claim presumes H(q) >= H(p), a
    rank difference that is not negative: then the right-hand side is at least H(p), and the online rank rises.
    (Spectra of C_p and C_t that share no eigenspace: the same holds of the matrices, von Neumann's entropy being
    concave too.)

    Args:
        p: shares of the online branch (R,), direction by direction; divided by their sum.
        q: shares of the target, in the same directions.
        t: of the step, in [0, 1].

    Returns:
        Concavity, and growth; both sides in nats.

    Raises:
        UserError: no shares, or no step.
    """
    if not 0 <= t <= 1:
        raise UserError(f"a step is a share between 0 and 1, got {t}")
    if p.shape != q.shape:
        raise UserError(f"a step goes between two rows of one length, got {tuple(p.shape)} and {tuple(q.shape)}")
    p, q = _shares(p), _shares(q)
    online, target, after = (float(torch.special.entr(row).sum()) for row in (p, q, (1 - t) * p + t * q))
    return (
        Lemma("entropy is concave", after, (1 - t) * online + t * target, premise=True),
        Lemma("the online rank rises", after, online, premise=target >= online),
    )
