"""Majorisation and the two lemmas, as inequalities with both sides computed, so that they can be checked.

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
    """Whether p majorises q: for every k, the k largest of p sum to no less than the k largest of q.

    Every Schur-concave function of p, the entropy above all, is then no larger than that of q.

    Args:
        p: shares (R,), in any order; they are divided by their sum.
        q: shares (R,), in any order; they are divided by their sum.
        tol: how far a partial sum may fall short.

    Raises:
        UserError: p and q are not two rows of shares of the same length.

    Example:
        >>> majorises(torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5]))
        True
    """
    first, second = (row.sort(descending=True).values.cumsum(0) for row in _both_shares(p, q))
    return bool((first - second >= -tol).all())


def _both_shares(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    if p.shape != q.shape:
        raise UserError(f"expected two rows of the same length, got {tuple(p.shape)} and {tuple(q.shape)}")
    return _shares(p), _shares(q)


def _shares(p: Tensor) -> Tensor:
    if p.ndim != 1 or not len(p) or not (p.isfinite() & (p >= 0)).all() or not p.any():
        raise UserError(
            "expected shares (R,), finite numbers at or above 0 that are not all 0; "
            f"got {p.flatten().tolist()[:4]} of shape {tuple(p.shape)}"
        )
    return p.double() / p.double().sum()


@dataclass(frozen=True, slots=True)
class Lemma:
    """An inequality left >= right, with its premise.

    Args:
        claim: the inequality in words.
        left: the side that is claimed to be no smaller.
        right: the other side.
        premise: whether the lemma applies; if it does not, nothing is claimed.
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
        """Whether the inequality is true here, up to rounding; a lemma without its premise always holds."""
        return not self.premise or self.margin >= -_ROUNDING * max(abs(self.left), abs(self.right), 1.0)


def filter_lemma(x: Tensor, gain: str | Gain, of: Convention = "correlation") -> Lemma:
    """The filter lemma: the effect of a gain on the effective rank of a spectrum.

    If g >= 0 is non-decreasing, the filtered spectrum majorises the original one, and the rank falls. If g is
    non-increasing and x g(x) is non-decreasing, the original majorises the filtered one, and the rank rises. A
    high-pass so steep that x g(x) falls somewhere reverses the order of directions and may do either; the premise
    is then False.

    Args:
        x: singular values on the gain's scale (R,), at or above 0; zeros remain zero.
        gain: a `Gain`, or its name or formula.
        of: the convention of the effective rank, see `spectra.effective_rank_of`.

    Returns:
        The effective ranks before and after, with the one that is claimed to be larger on the left.

    Raises:
        UserError: `x` is not a spectrum, or the gain is not valid on it (not monotone, for example).

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

    Entropy H is concave, so H((1-t) p + t q) >= (1-t) H(p) + t H(q). The second claim has the premise
    H(q) >= H(p), a rank difference that is not negative: the right-hand side is then at least H(p), and the online
    rank rises. (If C_p and C_t share no eigenspace, the same holds for the matrices, because von Neumann's entropy
    is concave too.)

    Args:
        p: shares of the online branch (R,), direction by direction; they are divided by their sum.
        q: shares of the target (R,), in the same directions; they are divided by their sum.
        t: the size of the step, in [0, 1].

    Returns:
        The lemma of concavity and the lemma of growth; both sides are in nats.

    Raises:
        UserError: p and q are not two rows of shares of the same length, or t is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise UserError(f"expected a step t between 0 and 1, got {t}")
    p, q = _both_shares(p, q)
    online, target, after = (float(torch.special.entr(row).sum()) for row in (p, q, (1 - t) * p + t * q))
    return (
        Lemma("entropy is concave", after, (1 - t) * online + t * target, premise=True),
        Lemma("the online rank rises", after, online, premise=target >= online),
    )
