from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import rankgap as rg
from rankgap.errors import UserError
from rankgap.filters.formulas import LARGEST, Expression
from rankgap.filters.gains import GAINS, GRID, AutoPower, Gain, checked_gain, parse_gain
from rankgap.filters.spectral import SpectralFilter, spectral_filter
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.gram import singular_values
from tests.matrices import gaussian

properties = settings(max_examples=200, derandomize=True, deadline=None)
S = torch.tensor([0.01, 0.5, 1.0, 7.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("s", lambda s: s),
        ("s/(s+0.1)", lambda s: s / (s + 0.1)),
        ("-2*s - -3", lambda s: -2 * s + 3),
        ("2**s**2", lambda s: 2 ** (s * s)),
        (" s ** -0.5 ", lambda s: s**-0.5),
        ("1 - exp(-s)", lambda s: 1 - math.exp(-s)),
        ("log(s) + log1p(s) * sqrt(s)", lambda s: math.log(s) + math.log1p(s) * math.sqrt(s)),
        ("tanh(s)", math.tanh),
        ("min(s, 2, 0.7)", lambda s: min(s, 2, 0.7)),
        ("max(log(s), 0)", lambda s: max(math.log(s), 0)),
        ("1", lambda s: 1.0),
    ],
)
def test_a_formula_means_what_python_means_by_it(text: str, formula: Callable[[float], float]) -> None:
    expected = torch.tensor([formula(s) for s in S.tolist()], dtype=torch.float64)
    assert_close(Expression(text)(S), expected, rtol=1e-15, atol=1e-15)
    assert Expression(text)(S.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x/(x+1)", r"unknown name in gain 'x/\(x\+1\)': 'x'"),
        ("lgo1p(s)", "did you mean 'log1p'"),
        ("s^0.5", r"write a power as \*\*"),
        ("s/(s+", "cannot be read as a formula"),
        ("(" * 190, "cannot be read as a formula"),
        ("s+\0", "cannot be read as a formula"),
        ("+".join(["s"] * 101), "at most 200 characters, but this one has 201"),
        ("__import__('os').system('true')", "not allowed"),
        ("s.__class__", "not allowed"),
        ("s[0]+1", "not allowed"),
        ("(lambda: s)()", "not allowed"),
        ("[s for s in s]", "not allowed"),
        ("open('x')", "'x'"),
        ("__import__(s)", "unknown function"),
        ("s if s else 1", "not allowed"),
        ("s > 1", "not allowed"),
        ("s // 2", "not allowed"),
        ("1j*s", "not allowed"),
        ("s + True", "not allowed"),
        ("exp(s, 2)", "exp takes one value, but got 2"),
        ("max(s)", "max takes two or more values, but got 1"),
        ("min(s, key=s)", "not allowed"),
        ("s + 1e999", "exceeds the largest float32"),
        ("s + " + "9" * 150 + "**2", "exceeds the largest float32"),
        ("s + 9**9**9**9", "overflows float32 at s = 1e-05: it gives inf"),
    ],
)
def test_an_invalid_formula_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SpectralFilter(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("log(s)", r"negative at s = 1e-05: it gives -11.51; .* max\(log\(s\), 0\)"),
        ("-s", "negative at s = 1e-05: it gives -1e-05"),
        ("exp(s)", r"overflows float32 at s = .*: it gives .*; put min"),
        ("s**9", "overflows float32"),
        ("s**-9", r"overflows .*; put max\(s"),
        ("sqrt(s-1)", "not a number at s = 1e-05"),
        ("0*s", "0 at every s from 1e-05 to 1e[+]04, so nothing passes"),
        ("s*exp(-s)", r"not monotone: it turns at s = 1; .* put min\(s, 1\) or max\(s, 1\)"),
        ("max(s, 1/s)", "not monotone: it turns at s = 1;"),
    ],
)
def test_a_formula_that_is_not_a_gain_is_refused_with_the_value_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_gain(text)


@pytest.mark.parametrize("text", ["min(s,1)*exp(-min(s,1))", "max(s,1)*exp(-max(s,1))", "max(log(s), 0)"])
def test_the_remedies_are_gains(text: str) -> None:
    gain = parse_gain(text)
    assert gain.is_low_pass != gain.is_high_pass


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("s/(s+0.1)", True, False),
        ("1-exp(-s)", True, False),
        ("tanh(s)", True, False),
        ("1/(s+0.1)", False, True),
        ("exp(-s)", False, True),
        ("2", True, True),
    ],
)
def test_a_formula_is_recognised_as_low_pass_or_high_pass(text: str, low: bool, high: bool) -> None:
    gain = parse_gain(text)
    assert (gain.name, gain.is_low_pass, gain.is_high_pass) == (text, low, high)


@pytest.mark.parametrize(
    ("formula", "name"), [("s**0.5", "power:0.5"), ("log1p(s)", "log1p"), ("1/s", "power:-1")]
)
def test_a_formula_filters_as_the_gain_it_spells(formula: str, name: str) -> None:
    z = gaussian(6, 10).requires_grad_()
    mine, named = spectral_filter(z, formula), spectral_filter(z, name)
    assert_close(mine, named, rtol=1e-12, atol=1e-12)
    up = gaussian(6, 10, seed=1)
    assert_close(*(torch.autograd.grad(p, z, up)[0] for p in (mine, named)), rtol=1e-12, atol=1e-12)


def test_a_formula_can_be_pickled_copied_and_compared() -> None:
    gain = parse_gain("s/(s+0.1)")
    for other in (pickle.loads(pickle.dumps(gain)), copy.deepcopy(gain), parse_gain("s/(s+0.1)")):
        assert other == gain
        assert_close(other(S), S / (S + 0.1))
    file = io.BytesIO()
    torch.save(SpectralFilter("s/(s+0.1)"), file)
    file.seek(0)
    z = gaussian(6, 10)
    assert_close(torch.load(file, weights_only=False)(z), spectral_filter(z, "s/(s+0.1)"), rtol=0, atol=0)


def test_a_formula_can_be_used_in_a_method() -> None:
    assert rg.design("simsiam", online="s/(s+0.1)").online == ("s/(s+0.1)",)
    out = rg.build("simsiam", backbone="resnet_tiny", target="1/(s+0.1)")(torch.randn(2, 8, 3, 32, 32))
    assert out.loss.isfinite()


def test_a_python_function_is_a_gain_once_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GAINS, "soft", Gain.of("soft", lambda x: x / (1 + x)))
    assert (GAINS["soft"].is_low_pass, GAINS["soft"].is_high_pass) == (True, False)
    z = gaussian(6, 10)
    assert_close(SpectralFilter("soft")(z), spectral_filter(z, "s/(1+s)"))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x.cos() + 2, "not monotone"),
        (lambda x: x.sum(), r"1801 singular values to a tensor of 1801 values, got shape \(\)"),
        (lambda x: 1.0, "got float"),
        (lambda x: x - 1, "negative"),
    ],
)
def test_a_python_function_that_is_not_a_gain_is_refused(function: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(UserError, match=f"gain 'mine' .*{says}"):
        Gain.of("mine", function)


def test_a_gain_is_checked_on_the_spectrum_it_is_given() -> None:
    wave = Gain("wave", lambda x: x.cos() + 2, is_low_pass=False, is_high_pass=False)
    assert_close(wave.check(S[:3]), S[:3].cos() + 2)  # falls there, and rises later
    with pytest.raises(UserError, match="turns at s = 1;"):
        wave.check(S.flip(0))
    assert_close(parse_gain("log").check(S), S.log().clamp_min(0))
    with pytest.raises(UserError, match=r"'log' is 0 at every s from 0.01 to 1, so nothing passes"):
        parse_gain("log").check(S[:3])
    with pytest.raises(UserError, match=r"'power:60' overflows float32 at s = 7: it gives 5.08e\+50"):
        parse_gain("power:60").check(S)
    with pytest.raises(UserError, match="overflows"):
        parse_gain("power:1").check(torch.tensor([2 * math.sqrt(LARGEST)], dtype=torch.float64))


@pytest.mark.parametrize(
    "x", [torch.tensor([1.0, 0.0]), torch.tensor([math.nan]), torch.ones(2, 2), torch.ones(0)]
)
def test_a_gain_is_only_checked_on_finite_numbers_above_0(x: Tensor) -> None:
    with pytest.raises(UserError, match="finite numbers above 0"):
        parse_gain("log1p").check(x)


@properties
@given(st.floats(-3, 3), st.floats(1e-3, 100), st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=12))
def test_monotone_functions_are_recognised(p: float, c: float, points: list[float]) -> None:
    x = torch.tensor(points, dtype=torch.float64)
    shapes: list[tuple[Callable[[Tensor], Tensor], bool]] = [
        (lambda s: (s / (s + c)) ** p, p >= 0),
        (lambda s: (c + s) ** -p, p <= 0),
    ]
    for function, rises in shapes:
        values, low, high = checked_gain("g", function, x)
        assert_close(values, function(x), rtol=0, atol=0)
        assert low if rises else high


@properties
@given(st.integers(0, 10_000), st.integers(3, 20))
def test_a_reversal_is_found_wherever_it_is(seed: int, n: int) -> None:
    steps = gaussian(n, seed=seed)
    values = steps.cumsum(0) - steps.cumsum(0).min() + 1
    x = torch.arange(1, n + 1, dtype=torch.float64)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    bumpy = (steps[1:] > 0).any() and (steps[1:] < 0).any()
    if bumpy:
        with pytest.raises(UserError, match="not monotone"):
            checked_gain("g", lambda s: values[s.long() - 1], x[order])
    else:
        checked_gain("g", lambda s: values[s.long() - 1], x[order])


def test_the_grid_spans_what_it_says() -> None:
    assert [float(GRID[0]), float(GRID[-1])] == pytest.approx([1e-5, 1e4])


spectra = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


@properties
@given(spectra, st.floats(0.05, 0.5), st.floats(0.55, 0.95))
def test_auto_keeps_its_share_of_the_rank_difference_of_whitening_in_the_band(
    x: Tensor, low: float, high: float
) -> None:
    gain = AutoPower(low, high)
    p = float(gain.exponent(x))
    assert -1 <= p <= 0
    before, filtered = (float(effective_rank_of(s)) for s in (x, x * gain(x)))
    most = len(x) - before
    share = (filtered - before) / most if most > 1e-3 else low
    assert low - 1e-3 <= share <= high + 1e-3
    if low + 1e-3 < share < high - 1e-3:
        assert p == pytest.approx(gain.preferred, abs=1e-5)


def test_auto_is_stronger_on_steeper_spectra_at_any_scale() -> None:
    steep, flat = torch.logspace(0, -3, 64), torch.logspace(0, -0.3, 64)
    gain = AutoPower()
    assert gain.exponent(steep) < gain.exponent(flat)
    assert_close(gain.exponent(100 * steep), gain.exponent(steep))
    both = gain.exponent(torch.stack([steep, flat]))  # each leading dimension has its own
    assert_close(both, torch.stack([gain.exponent(steep), gain.exponent(flat)]))


def test_auto_does_not_count_the_null_space() -> None:
    x = torch.logspace(0, -2, 30, dtype=torch.float64)
    padded = torch.cat([x, torch.zeros(10, dtype=torch.float64)])
    assert_close(AutoPower().exponent(padded), AutoPower().exponent(x))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (2, 12, 40)])
def test_a_filter_with_auto_is_the_power_that_it_chose(shape: tuple[int, ...]) -> None:
    z = gaussian(*shape) * torch.logspace(0, -1, shape[-1], dtype=torch.float64)
    found = spectral_filter(z, "auto", branch="target")
    for view, filtered in zip(z.view(-1, *shape[-2:]), found.view(-1, *shape[-2:]), strict=True):
        p = float(AutoPower().exponent(singular_values(view) / shape[-2] ** 0.5))
        assert_close(filtered, spectral_filter(view, f"power:{p:.17g}", branch="target"), rtol=1e-4, atol=1e-6)


def test_a_filter_with_auto_remembers_the_exponent_of_view_2() -> None:
    scales = torch.stack([torch.logspace(0, -0.2, 12), torch.logspace(0, -2, 12)])[:, None]
    z = gaussian(2, 40, 12) * scales  # the second view is steeper
    exponents = [AutoPower().exponent(singular_values(view) / 40**0.5) for view in z]
    module = SpectralFilter("auto", "target")
    assert module.exponent is not None
    assert module.exponent.isnan()
    for batch, expected in ((z, exponents[1]), (z[0], exponents[0]), (z[:1], exponents[0])):
        module(batch.requires_grad_())
        assert_close(module.exponent, expected[0], rtol=0, atol=1e-6)
        assert module.exponent.shape == ()
        assert not module.exponent.requires_grad
    assert module.state_dict() == {}
    plain = SpectralFilter("power:-0.5", "target")
    plain(z)
    assert plain.exponent is None


def test_a_running_filter_with_auto_keeps_its_exponent_when_a_run_is_resumed() -> None:
    module, resumed = (SpectralFilter("auto", "target", estimator="ema", dim=12, every=2) for _ in range(2))
    z = gaussian(2, 40, 12) * torch.logspace(0, -2, 12)
    module(z)
    assert module.running is not None
    assert module.exponent is not None
    values = torch.linalg.eigvalsh(module.running.correlation)
    assert_close(module.exponent, AutoPower().exponent(values.sqrt())[0], rtol=0, atol=1e-6)
    resumed.load_state_dict(module.state_dict())
    assert_close(resumed.exponent, module.exponent, rtol=0, atol=0)
    assert_close(copy.deepcopy(module)(2 * z), module(2 * z), rtol=0, atol=0)


def test_auto_refuses_a_solver_that_computes_no_spectrum() -> None:
    with pytest.raises(
        UserError,
        match="'auto' is chosen from the spectrum, which solver='iterative' never computes; use solver='gram'",
    ):
        spectral_filter(torch.eye(3), "auto", solver="iterative")
