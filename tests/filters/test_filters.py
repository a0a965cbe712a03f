from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.choices import Side
from rankgap.errors import NonFiniteError, UserError
from rankgap.filters.gains import GAINS, Gain, Scale, parse_gain
from rankgap.filters.spectral import SpectralFilter, spectral_filter
from rankgap.spectra.effective_rank import effective_rank, mean_energy
from rankgap.spectra.gram import rank_tolerance, singular_values
from rankgap.spectra.pair import measured_filter
from tests.matrices import gaussian, orthogonal

SHAPES = [(12, 40), (40, 12), (16, 16), (1, 6)]
SPECS = ["power:0.5", "power:1", "power:2", "power:-0.3", "power:-1", "log", "log1p", "log1p2"]
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda x: torch.where(x > 1, torch.log(x), 0.0),
    "log1p": lambda x: torch.log(1 + x),
    "log1p2": lambda x: torch.log(1 + x * x),
}
properties = settings(max_examples=40, derandomize=True, deadline=None)


def batch_normed(n: int, d: int, seed: int = 0, steep: float = 1.0) -> Tensor:
    latent = gaussian(n, d, seed=seed) * torch.logspace(0, -steep, d, dtype=torch.float64)
    z = (latent @ gaussian(d, d, seed=seed + 1)).float()
    normed: Tensor = nn.BatchNorm1d(d, affine=False)(z)
    return normed


def definition(z: Tensor, spec: str, scale: Scale = "rms") -> tuple[Tensor, Tensor]:
    """F_g(Z) and W from the SVD in float64; the null space as `torch.linalg.matrix_rank` has it for `z`."""
    tol = max(z.shape) * torch.finfo(z.dtype).eps
    u, s, vt = torch.linalg.svd(z.double(), full_matrices=False)
    x = s / math.sqrt(len(z)) if scale == "rms" else s
    formula = FORMULAS[spec] if spec in FORMULAS else lambda x: x ** float(spec.removeprefix("power:"))
    g = torch.where(s > tol * s[0], formula(x.clamp_min(1e-300)), 0.0)
    return u * (s * g) @ vt, vt.T * g @ vt


def filtered_with_gradient(z: Tensor, spec: str, scale: Scale = "rms") -> tuple[Tensor, Tensor, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    p = spectral_filter(leaf, spec, scale=scale)
    upstream = gaussian(*p.shape, seed=7, dtype=p.dtype)
    (gradient,) = torch.autograd.grad(p, leaf, upstream)
    return p.detach(), gradient, upstream


@pytest.mark.parametrize("scale", ["rms", "raw"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank_deficient", [False, True])
def test_value_and_gradient_match_the_definition_by_svd(
    shape: tuple[int, int], spec: str, scale: Scale, rank_deficient: bool
) -> None:
    z = gaussian(*shape)
    if rank_deficient:
        z[:, -1] = z[:, 0]
        z[len(z) // 2 :] -= z[len(z) // 2 :].mean(0)
    p, gradient, upstream = filtered_with_gradient(z, spec, scale)
    value, w = definition(z, spec, scale)
    assert_close(p, value, rtol=1e-9, atol=1e-9)
    assert_close(gradient, upstream @ w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", [*SPECS, "power:0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_has_the_same_value_and_no_gradient(shape: tuple[int, int], spec: str) -> None:
    z = gaussian(*shape).requires_grad_()
    t = spectral_filter(z, spec, branch="target")
    assert not t.requires_grad
    assert_close(t, definition(z.detach(), spec)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_power_zero_is_the_identity_on_the_row_space(shape: tuple[int, int]) -> None:
    z = gaussian(*shape)
    p, gradient, upstream = filtered_with_gradient(z, "power:0")
    assert_close(p, z, rtol=1e-9, atol=1e-9)
    assert_close(gradient, upstream @ torch.linalg.pinv(z) @ z, rtol=1e-9, atol=1e-9)


def test_gradcheck_where_the_held_map_is_constant() -> None:
    assert torch.autograd.gradcheck(lambda z: spectral_filter(z, "power:0"), gaussian(7, 3).requires_grad_())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_rows_columns_and_rotations_go_through(shape: tuple[int, int]) -> None:
    z = gaussian(*shape)
    p = spectral_filter(z, "log1p")
    rows, columns = torch.randperm(shape[0]), torch.randperm(shape[1])
    assert_close(spectral_filter(z[rows][:, columns], "log1p"), p[rows][:, columns], rtol=1e-9, atol=1e-9)
    left, right = orthogonal(shape[0]), orthogonal(shape[1], 1)
    assert_close(spectral_filter(left @ z @ right, "log1p"), left @ p @ right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 8, 20), (3, 2, 20, 8)])
def test_leading_dimensions_are_filtered_separately(shape: tuple[int, ...]) -> None:
    z = gaussian(*shape)
    p, gradient, upstream = filtered_with_gradient(z, "power:0.5")
    flat = z.flatten(0, -3)
    for i, (value, grad, up) in enumerate(
        zip(p.flatten(0, -3), gradient.flatten(0, -3), upstream.flatten(0, -3), strict=True)
    ):
        expected, w = definition(flat[i], "power:0.5")
        assert_close(value, expected, rtol=1e-9, atol=1e-9)
        assert_close(grad, up @ w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", ["power:0.5", "power:-0.5", "power:-1", "log1p"])
@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_float32_stays_near_float64_on_an_ill_conditioned_batch(shape: tuple[int, int], spec: str) -> None:
    z = batch_normed(*shape, steep=5)
    s = singular_values(z)
    condition = s[0] / s[s > rank_tolerance(*shape, torch.float32) * s[0]][-1]
    assert condition > 500
    p, gradient, upstream = filtered_with_gradient(z, spec)
    value, w = definition(z, spec)
    exact = upstream.double() @ w
    bound = torch.finfo(torch.float32).eps * condition
    assert (p - value).norm() / value.norm() < bound
    assert (gradient - exact).norm() / exact.norm() < bound


def test_a_gradient_is_as_exact_along_weak_directions() -> None:
    n, d = 32, 64
    s = torch.logspace(0, -3, n, dtype=torch.float64)
    z = (orthogonal(n) * s @ orthogonal(d)[:n]).float()
    _, gradient, upstream = filtered_with_gradient(z, "power:-0.5", "raw")
    exact = upstream.double() @ definition(z, "power:-0.5", "raw")[1]
    assert (gradient - exact).norm() / exact.norm() < 1e-4


@pytest.mark.parametrize("p", [-0.3, -0.5, -1.0])
def test_trap_1_a_target_is_filtered_by_its_own_spectrum_without_null_space(p: float) -> None:
    online, target = batch_normed(32, 64), batch_normed(32, 64, seed=9)
    _, s, vt = torch.linalg.svd(online, full_matrices=False)
    as_published = target @ vt.T * s**p @ vt
    share = singular_values(as_published).square()
    assert share[0] / share.sum() > 0.5
    ours = spectral_filter(target, f"power:{p}", branch="target")
    assert effective_rank(ours) > effective_rank(target) > 2 * effective_rank(as_published)


def test_trap_2_whitening_gives_the_null_direction_no_weight() -> None:
    z = batch_normed(32, 64)
    u, _, vt = torch.linalg.svd(z, full_matrices=False)
    assert mean_energy(u @ vt) > 0.9 / 32
    white = spectral_filter(z, "power:-1", branch="target", scale="raw")
    assert mean_energy(white) < 1e-9
    assert_close(singular_values(white)[:31], torch.ones(31, dtype=torch.float64), rtol=1e-4, atol=0)
    assert float(effective_rank(white)) == pytest.approx(31, abs=1e-3)


@pytest.mark.parametrize("spec", ["log", "log1p", "log1p2", "power:0.5"])
def test_trap_3_a_gain_means_the_same_at_every_batch_size(spec: str) -> None:
    z = 3 * gaussian(10, 30)
    twice = torch.cat([z, z])
    assert_close(spectral_filter(twice, spec)[:10], spectral_filter(z, spec), rtol=1e-9, atol=1e-9)
    raw = spectral_filter(twice, spec, scale="raw")[:10]
    assert (raw - spectral_filter(z, spec, scale="raw")).norm() > 0.1


def test_trap_3_log_is_neither_negative_nor_infinite() -> None:
    z = torch.diag(torch.tensor([math.e**2, 1.0, 0.1, 0.0]))
    expected = torch.diag(torch.tensor([2 * math.e**2, 0.0, 0.0, 0.0]))
    assert_close(spectral_filter(z, "log", scale="raw"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_4_half_precision_neither_overflows_nor_loses_digits(dtype: torch.dtype) -> None:
    z = (60 * gaussian(8, 20)).to(dtype)
    alone, gradient, _ = filtered_with_gradient(z.float(), "power:2", "raw")
    with torch.autocast("cpu", dtype=dtype):
        leaf = z.clone().requires_grad_()
        p = spectral_filter(leaf, "power:2", scale="raw")
        (found,) = torch.autograd.grad(p, leaf, gaussian(8, 20, seed=7, dtype=torch.float32))
    assert p.dtype == torch.float32
    assert p.abs().max() > torch.finfo(torch.float16).max
    assert_close(p, alone, rtol=0, atol=0)
    assert_close(found, gradient.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
@pytest.mark.parametrize("spec", ["power:-1", "power:0.5", "log"])
def test_trap_5_negative_gram_eigenvalues_do_no_harm(shape: tuple[int, int], spec: str) -> None:
    z = gaussian(shape[0], 2, dtype=torch.float32) @ gaussian(2, shape[1], seed=1, dtype=torch.float32)
    gram = z.double() @ z.double().T
    assert torch.linalg.eigvalsh(gram)[0] < 0
    p, gradient, upstream = filtered_with_gradient(z, spec)
    value, w = definition(z, spec)
    assert_close(p, value.float(), rtol=1e-4, atol=1e-4)
    assert_close(gradient, (upstream.double() @ w).float(), rtol=1e-4, atol=1e-4)


def test_trap_5_a_batch_that_is_not_finite_is_refused() -> None:
    for bad in (math.nan, math.inf):
        for shape in ((5, 8), (8, 5), (1, 1)):
            z = gaussian(*shape)
            z[-1, 0] = bad
            with pytest.raises(NonFiniteError, match="spectral_filter: the input is not finite"):
                spectral_filter(z, "power:0.5")


@pytest.mark.parametrize("failures", [1, 2])
def test_trap_5_a_decomposition_is_tried_twice_then_given_up(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    solve, left = torch.linalg.eigh, [failures]

    def stubborn(gram: Tensor) -> tuple[Tensor, Tensor]:
        if left[0]:
            left[0] -= 1
            torch.linalg.cholesky(-torch.eye(2))  # raises LinAlgError
        values, vectors = solve(gram)
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)
    z = gaussian(5, 8)
    if failures == 1:
        assert_close(spectral_filter(z, "log1p"), definition(z, "log1p")[0], rtol=1e-9, atol=1e-9)
    else:
        with pytest.raises(RuntimeError, match="spectral_filter: the eigen-decomposition of a 5 x 5"):
            spectral_filter(z, "log1p")


@pytest.mark.parametrize("branch", ["online", "target"])
@pytest.mark.parametrize("spec", ["log1p", "power:-0.5"])
def test_trap_6_any_gain_stands_on_either_side(branch: Side, spec: str) -> None:
    z = gaussian(6, 10)
    assert_close(spectral_filter(z, spec, branch=branch), definition(z, spec)[0], rtol=1e-9, atol=1e-9)


def test_a_batch_normed_null_direction_gets_no_gradient() -> None:
    z = batch_normed(32, 64, steep=1.5)
    p, gradient, _ = filtered_with_gradient(z, "power:-1")
    assert mean_energy(p) < 1e-9
    null = torch.linalg.svd(z.double())[2][31:]
    assert (gradient.double() @ null.T).norm() / gradient.norm() < 1e-4


@pytest.mark.parametrize(("p", "most"), [(-0.5, 1e-4), (-1.0, 1.01 / 64)])
def test_a_null_direction_that_bfloat16_rounded_gets_no_more_than_its_share(p: float, most: float) -> None:
    rounded = batch_normed(64, 96).bfloat16()
    assert mean_energy(rounded) < 1e-5
    assert mean_energy(spectral_filter(rounded, f"power:{p}", branch="target")) < most


def test_an_all_zero_batch_stays_all_zero() -> None:
    for shape in ((4, 9), (9, 4)):
        p, gradient, _ = filtered_with_gradient(torch.zeros(shape), "power:-1")
        assert p.count_nonzero() == gradient.count_nonzero() == 0


@properties
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10_000), st.floats(-1, 2.5), st.floats(0, 3))
def test_filter_lemma_for_powers(n: int, d: int, seed: int, p: float, steep: float) -> None:
    z = gaussian(n, d, seed=seed) * torch.logspace(0, -steep, d, dtype=torch.float64)
    for of in ("correlation", "features"):
        before, after = effective_rank(z, of), effective_rank(spectral_filter(z, f"power:{p}"), of)
        assert after <= before + 1e-6 if p > 0 else after >= before - 1e-6


@properties
@given(st.integers(0, 10_000), st.sampled_from(["log", "log1p", "log1p2"]), st.floats(0.01, 100))
def test_filter_lemma_for_logs(seed: int, spec: str, scale: float) -> None:
    z = gaussian(9, 6, seed=seed)
    z = scale * z / singular_values(z)[0]
    z = z * 20 / scale if spec == "log" and scale < 20 else z  # log lets nothing through below x = 1
    for of in ("correlation", "features"):
        assert effective_rank(spectral_filter(z, spec), of) <= effective_rank(z, of) + 1e-6


def test_a_high_pass_so_steep_that_it_reverses_the_spectrum_lowers_the_rank() -> None:
    z = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64))
    assert effective_rank(spectral_filter(z, "power:-1")) > effective_rank(z)
    assert effective_rank(spectral_filter(z, "power:-3")) < effective_rank(z)


@properties
@given(st.floats(-2, 2), st.lists(st.floats(0.01, 100), min_size=2, max_size=8))
def test_gains_are_monotone_as_they_claim(p: float, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64).sort().values
    for gain in [parse_gain(f"power:{p}"), *GAINS.values()]:
        steps = gain(x).diff()
        assert gain.is_low_pass or gain.is_high_pass
        assert not gain.is_low_pass or (steps >= 0).all()
        assert not gain.is_high_pass or (steps <= 0).all()


def test_the_measured_filter_is_the_gain() -> None:
    z = gaussian(10, 25)
    s, g = measured_filter(spectral_filter(z, "power:0.5"), z)
    assert_close(g, (s / math.sqrt(10)).sqrt())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("log1", "did you mean 'log1p'"),
        ("powr:0.5", "did you mean 'power:p'"),
        ("", "unknown gain '': expected one of auto, log, log1p, log1p2, power:p"),
        ("log:2", "unknown gain 'log:2'"),
        ("power", "'power': expected power:p with a finite p"),
        ("power:", "expected power:p"),
        ("power:abc", "'power:abc': expected"),
        ("power:nan", "expected power:p with a finite p"),
        ("power:inf", "expected power:p with a finite p"),
    ],
)
def test_an_unknown_gain_is_refused(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SpectralFilter(spec)


@pytest.mark.parametrize(
    ("z", "says"),
    [
        (torch.ones(5), r"spectral_filter expects .* got float32 of shape \(5,\)"),
        (torch.ones(0, 5), r"shape \(0, 5\)"),
        (torch.ones(2, 5, 0), r"shape \(2, 5, 0\)"),
        (torch.ones(5, 5, dtype=torch.int32), "got int32"),
    ],
)
def test_a_tensor_that_is_not_a_batch_is_refused(z: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        spectral_filter(z, "power:1")


def test_an_unknown_branch_or_scale_names_the_nearest() -> None:
    for make in (
        lambda: SpectralFilter("log1p", branch="onlin"),  # type: ignore[arg-type]
        lambda: spectral_filter(torch.eye(2), "log1p", branch="onlin"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match="unknown branch 'onlin': did you mean 'online'"):
            make()
    for make in (
        lambda: SpectralFilter("log1p", scale="rsm"),  # type: ignore[arg-type]
        lambda: spectral_filter(torch.eye(2), "log1p", scale="rsm"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match="unknown scale 'rsm': did you mean 'rms'"):
            make()


def test_the_module_is_the_function_and_can_be_copied_and_saved() -> None:
    z = gaussian(6, 10)
    module = SpectralFilter("power:-0.5", branch="target", scale="raw")
    expected = spectral_filter(z, "power:-0.5", branch="target", scale="raw")
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for each in (module, copy.deepcopy(module), loaded):
        assert_close(each(z), expected, rtol=0, atol=0)
    assert module.state_dict() == {}


def test_a_custom_gain_needs_no_name() -> None:
    z = torch.diag(torch.tensor([4.0, 1.0]))
    band = Gain("only strong ones", lambda x: (x > 2).to(x), is_low_pass=True, is_high_pass=False)
    assert_close(spectral_filter(z, band, scale="raw"), torch.diag(torch.tensor([4.0, 0.0])))
