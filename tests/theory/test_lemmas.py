from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankgap.errors import UserError
from rankgap.filters.gains import Gain
from rankgap.spectra.effective_rank import Convention, effective_rank_of
from rankgap.theory import filter_lemma, majorises, step_lemma
from tests.matrices import gaussian

properties = settings(max_examples=300, derandomize=True, deadline=None)
MANY = 2000


def random_gain(seed: int, *, rises: bool) -> Gain:
    """A step function of random heights and places, or a random power, saturation or exponential."""
    r = gaussian(8, seed=seed + 50_000).abs()
    steps = lambda x: r[0] * (seed % 3 > 0) + (x[..., None] > 2 * r[1:4]).to(x) @ r[4:7]  # noqa: E731
    shapes: list[Callable[[Tensor], Tensor]] = [
        steps,
        lambda x: x ** float(r[0]),
        lambda x: x / (x + r[0]),
        lambda x: (r[0] * x / 4).clamp_max(20).expm1(),
    ]
    shape = shapes[seed % len(shapes)]
    function = shape if rises else lambda x: 1 / (shape(x) + 0.1)
    return Gain("random", function, is_low_pass=rises, is_high_pass=not rises)


def random_spectrum(seed: int) -> Tensor:
    n = 2 + seed % 11
    x = 3 * gaussian(n, seed=seed).abs() ** (1 + seed % 4)
    x[gaussian(n, seed=seed + 1) > 1.5] = 0  # null directions
    x[0] = x[-1] = 9.0  # equal ones; every random gain lets them through
    return x


def energy(x: Tensor, g: Tensor | float = 1.0) -> Tensor:
    return (x * g) ** 2


def test_the_filter_lemma_holds_for_thousands_of_low_pass_gains() -> None:
    fell = 0
    for seed in range(MANY):
        x, gain = random_spectrum(seed), random_gain(seed, rises=True)
        for of in ("correlation", "features"):
            lemma = filter_lemma(x, gain, of)
            assert lemma.claim == "the rank falls"
            assert lemma.premise
            assert lemma.holds, (seed, lemma)
            fell += lemma.margin > 1e-6
        y = x[x > 0]
        assert majorises(energy(y, gain(y)), energy(y))
        assert majorises(y * gain(y), y)
    assert fell > MANY


def test_the_filter_lemma_holds_for_thousands_of_high_pass_gains() -> None:
    rose = skipped = 0
    for seed in range(MANY):
        x, gain = random_spectrum(seed), random_gain(seed, rises=False)
        for of in ("correlation", "features"):
            lemma = filter_lemma(x, gain, of)
            assert lemma.claim == "the rank rises" or abs(lemma.margin) < 1e-12, (
                seed,
                lemma,
            )  # g is constant here
            assert lemma.holds, (seed, lemma)
            rose += lemma.premise and lemma.margin > 1e-6
            skipped += not lemma.premise
        y = x[x > 0]
        if filter_lemma(x, gain).premise:
            assert majorises(energy(y), energy(y, gain(y)))
    assert rose > MANY / 2
    assert skipped > MANY / 10  # x g(x) falls somewhere: the premise is not always true


def test_both_sides_are_the_effective_ranks_before_and_after() -> None:
    x = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    conventions: list[Convention] = ["correlation", "features"]
    for of in conventions:
        before = float(effective_rank_of(x, of))
        low, high = filter_lemma(x, "power:1", of), filter_lemma(x, "power:-0.5", of)
        squared, rooted = (float(effective_rank_of(y, of)) for y in (x**2, x**0.5))
        assert [low.left, low.right] == pytest.approx([before, squared], rel=1e-12)
        assert [high.left, high.right] == pytest.approx([rooted, before], rel=1e-12)
        assert low.margin == low.left - low.right > 0
    same = filter_lemma(x, "power:0")
    assert (same.margin, same.holds) == (0, True)


def test_a_high_pass_so_steep_that_it_reverses_order_may_lower_the_rank() -> None:
    x = torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    whitening, steep = filter_lemma(x, "power:-1"), filter_lemma(x, "power:-3")
    assert whitening.premise
    assert whitening.margin > 0
    assert not steep.premise
    assert steep.margin < -1
    assert steep.holds  # nothing was claimed
    strong, weak = energy(x, x**-3.0), energy(x)
    assert not majorises(weak, strong)


def test_a_low_pass_that_turns_may_raise_the_rank_so_monotonicity_is_needed() -> None:
    x = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    bump = Gain("bump", lambda x: torch.where(x == 2, 1.5, 1.0), is_low_pass=True, is_high_pass=False)
    assert effective_rank_of(x * bump(x)) > effective_rank_of(x)
    with pytest.raises(UserError, match="'bump' is not monotone: it turns at s = 2"):
        filter_lemma(x, bump)


def test_a_negative_gain_is_refused() -> None:
    """ln x, as the authors wrote it, falls in size below 1 though it rises."""
    x = torch.tensor([1.2, 0.1], dtype=torch.float64)
    assert effective_rank_of(x * x.log()) > effective_rank_of(x)
    with pytest.raises(UserError, match=r"negative at s = 0\.1"):
        filter_lemma(x, Gain("ln", torch.log, is_low_pass=True, is_high_pass=False))


@properties
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_majorisation_is_the_order_of_averages(seed: int, n: int) -> None:
    """p majorises q = M p for every doubly stochastic M (Hardy, Littlewood, Polya)."""
    p = gaussian(n, seed=seed).square()
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed + i)) for i in range(4)]
    weights = torch.softmax(gaussian(4, seed=seed + 1), 0)
    q = torch.stack([w * p[order] for w, order in zip(weights, orders, strict=True)]).sum(0)
    assert majorises(p, q)
    assert majorises(p, p[orders[0]])
    assert majorises(10 * p, q)
    assert majorises(q, p) == (float((p.sort().values - q.sort().values).abs().max()) < 1e-10)
    assert majorises(p, torch.ones(n))
    assert majorises(torch.eye(n)[0], p)


def test_two_spectra_may_be_in_no_order() -> None:
    p, q = torch.tensor([0.6, 0.2, 0.2]), torch.tensor([0.5, 0.4, 0.1])
    assert not majorises(p, q)
    assert not majorises(q, p)
    assert majorises(p, q, tol=0.11)


@properties
@given(st.integers(0, 100_000), st.integers(1, 12), st.floats(0, 1))
def test_the_step_lemma(seed: int, n: int, t: float) -> None:
    p, q = gaussian(2, n, seed=seed).square()
    p, q = p / p.sum(), q / q.sum()
    concave, grows = step_lemma(p, 3 * q, t)

    def entropy(p: Tensor) -> float:
        return -sum(float(v) * math.log(v) for v in p.tolist() if v)

    assert concave.premise
    assert concave.left == grows.left == pytest.approx(entropy((1 - t) * p + t * q), abs=1e-12)
    assert concave.right == pytest.approx((1 - t) * entropy(p) + t * entropy(q), abs=1e-12)
    assert grows.right == pytest.approx(entropy(p), abs=1e-12)
    assert grows.premise == (entropy(q) >= entropy(p)) or abs(entropy(q) - entropy(p)) < 1e-12
    assert concave.holds
    assert grows.holds


def test_a_step_towards_a_target_of_lower_rank_may_lower_the_rank() -> None:
    concave, grows = step_lemma(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), 0.5)
    assert concave.margin > 0.1
    assert not grows.premise
    assert grows.margin < -0.1


def test_the_step_lemma_needs_no_shared_eigenspace() -> None:
    """Von Neumann's entropy is concave, so correlations may be mixed as matrices."""
    for seed in range(200):
        c = [gaussian(4, 4, seed=2 * seed + i) for i in range(2)]
        p, q = (m @ m.T / (m @ m.T).trace() for m in c)
        h = [float(torch.special.entr(torch.linalg.eigvalsh(m)).sum()) for m in (p, q, 0.7 * p + 0.3 * q)]
        assert h[2] >= 0.7 * h[0] + 0.3 * h[1]


ROW = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: majorises(ROW, torch.ones(3)), r"of the same length, got \(2,\) and \(3,\)"),
        (lambda: majorises(ROW, torch.tensor([1.5, -0.5])), r"that are not all 0; got \[1.5, -0.5\]"),
        (lambda: majorises(torch.zeros(2), ROW), "not all 0"),
        (lambda: majorises(torch.tensor([math.nan, 1.0]), ROW), "finite"),
        (lambda: majorises(torch.ones(2, 2), torch.ones(2, 2)), r"of shape \(2, 2\)"),
        (lambda: step_lemma(ROW, torch.ones(3), 0.5), "of the same length"),
        (lambda: step_lemma(ROW, ROW, 1.5), "between 0 and 1, got 1.5"),
        (lambda: step_lemma(ROW, ROW, math.nan), "between 0 and 1, got nan"),
        (lambda: filter_lemma(torch.zeros(3), "log1p"), "finite numbers above 0, got an empty tensor"),
        (lambda: filter_lemma(torch.tensor([1.0, -1.0]), "log1p"), "finite numbers above 0"),
        (lambda: filter_lemma(ROW, "log1"), "did you mean 'log1p'"),
        (lambda: filter_lemma(ROW, "log1p", "entropy"), "unknown convention"),  # type: ignore[arg-type]
        (lambda: filter_lemma(ROW / 100, "power:999"), "'power:999' is 0 at every s"),
    ],
)
def test_an_invalid_spectrum_or_step_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()
