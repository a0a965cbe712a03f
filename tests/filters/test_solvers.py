from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.filters.gains import parse_gain
from rankgap.filters.learned import LearnedFilter, LearnedOptions
from rankgap.filters.products import gain_by_products, square_roots
from rankgap.filters.spectral import FilterOptions, Solver, SpectralFilter, spectral_filter
from rankgap.spectra.effective_rank import effective_rank, mean_energy
from rankgap.spectra.gram import rank_tolerance
from tests.matrices import gaussian, with_spectrum

SHAPES = [(12, 40), (40, 12), (16, 16), (2, 12, 40), (2, 40, 12)]
# The errors that gain_by_products documents: relative in float32 and in float64.
ERRORS = (
    dict.fromkeys(["power:0", "power:0.5", "power:1", "power:1.5"], (2e-5, 1e-8))
    | dict.fromkeys(["power:-0.5", "power:-1"], (1e-3, 1e-8))
    | dict.fromkeys(["power:0.3", "log1p", "log1p2"], (2e-5, 3e-5))
    | dict.fromkeys(["power:-0.3", "power:-0.7"], (1e-3, 3e-5))
    | {"log": (1e-2, 1e-2)}
)


def definition(z: Tensor, spec: str) -> tuple[Tensor, Tensor]:
    """F_g(Z) and W (..., D, D) from the SVD in float64."""
    u, s, vt = torch.linalg.svd(z.double(), full_matrices=False)
    keep = s > rank_tolerance(z.shape[-2], z.shape[-1], z.dtype) * s[..., :1]
    g = torch.where(keep, parse_gain(spec)(torch.where(keep, s / math.sqrt(z.shape[-2]), 1.0)), 0.0)
    return (u * (s * g).unsqueeze(-2)) @ vt, (vt.mT * g.unsqueeze(-2)) @ vt


def filtered(z: Tensor, spec: str, solver: Solver) -> tuple[Tensor, Tensor, Tensor]:
    """The filtered batch, the gradient that reaches `z`, and the one that was sent."""
    leaf = z.clone().requires_grad_()
    p = spectral_filter(leaf, spec, solver=solver)
    upstream = gaussian(*p.shape, seed=7, dtype=p.dtype)
    (gradient,) = torch.autograd.grad(p, leaf, upstream)
    return p.detach(), gradient, upstream


def relative(found: Tensor, wanted: Tensor) -> float:
    """The relative error in the Frobenius norm."""
    return float((found - wanted).norm() / wanted.norm())


def conditioned(shape: tuple[int, ...], condition: float, *, null: bool = False) -> Tensor:
    """Batches (..., N, D) with a spectrum of a given condition, and a null direction on request."""
    r = min(shape[-2:])
    s = torch.logspace(1, 1 - math.log10(condition), r, dtype=torch.float64)
    if null:
        s[-1] = 0
    views = [with_spectrum(s, shape[-2], shape[-1], seed=3 * i) for i in range(math.prod(shape[:-2]))]
    return torch.stack(views).view(shape)


@pytest.fixture
def no_decompositions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every decomposition of torch fail."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decomposition was asked for")

    for name in ("eigh", "eigvalsh", "svd", "svdvals", "inv", "solve", "cholesky"):
        monkeypatch.setattr(torch.linalg, name, refuse)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("spec", list(ERRORS))
@pytest.mark.parametrize("shape", SHAPES)
def test_iterative_errs_by_no_more_than_it_documents(shape: tuple[int, ...], spec: str, null: bool) -> None:
    z = 10 * conditioned(shape, 50, null=null)
    single, double = ERRORS[spec]
    value, w = definition(z, spec)
    assert relative(spectral_filter(z, spec, solver="iterative"), value) < double
    p, gradient, upstream = filtered(z.float(), spec, "iterative")
    assert p.dtype == torch.float32
    assert relative(p, value) < single
    assert relative(gradient, upstream.double() @ w) < 1e-2


@pytest.mark.parametrize("spec", ["power:0.5", "power:-1", "log1p"])
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_the_definition(shape: tuple[int, ...], spec: str) -> None:
    z = conditioned(shape, 1e4, null=True)
    value, w = definition(z, spec)
    p, gradient, upstream = filtered(z, spec, "svd")
    assert_close(p, value, rtol=1e-9, atol=1e-9)
    assert_close(gradient, upstream @ w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", ["power:2", "power:4"])
@pytest.mark.parametrize("solver", ["auto", "svd", "iterative"])
@pytest.mark.parametrize("shape", SHAPES)
def test_even_powers_are_products_whatever_the_solver(shape: tuple[int, ...], solver: Solver, spec: str) -> None:
    z = conditioned(shape, 1e3, null=True)
    value, w = definition(z, spec)
    p, gradient, upstream = filtered(z, spec, solver)
    assert_close(p, value, rtol=1e-9, atol=1e-9)
    assert_close(gradient, upstream @ w, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("no_decompositions")
@pytest.mark.parametrize(
    ("solver", "specs"),
    [("iterative", list(ERRORS)), ("auto", ["power:2", "power:4"]), ("svd", ["power:2", "power:4"])],
)
def test_products_decompose_nothing(solver: Solver, specs: list[str]) -> None:
    for spec in specs:
        filtered(gaussian(6, 9), spec, solver)


@pytest.mark.parametrize("spec", ["power:-1", "power:-0.5", "power:0.5", "power:1", "power:-0.7", "log1p"])
def test_a_batch_normed_null_direction_gets_nothing_by_products(spec: str) -> None:
    z = nn.BatchNorm1d(96, affine=False)(gaussian(64, 96, dtype=torch.float32) + 5)
    white = spectral_filter(z, spec, branch="target", solver="iterative")
    assert mean_energy(white) < 1e-6
    exact = effective_rank(spectral_filter(z, spec, branch="target", solver="gram"))
    assert float(effective_rank(white)) == pytest.approx(float(exact), rel=1e-3)


@pytest.fixture(params=["high", "medium"])
def reduced_products(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced_products")
@pytest.mark.parametrize("spec", ["power:-1", "power:-0.5", "power:0.5", "power:1", "log1p"])
def test_products_of_few_bits_do_not_diverge(spec: str) -> None:
    z = nn.BatchNorm1d(512, affine=False)(with_spectrum(torch.logspace(0, -4, 128), 128, 512).float())
    p, gradient, _ = filtered(z, spec, "iterative")
    largest = parse_gain(spec)(torch.linalg.svdvals(z) / math.sqrt(128)).max()
    assert p.norm() <= 1.1 * largest * z.norm()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_roots_of_a_diagonal(dtype: torch.dtype) -> None:
    x = torch.logspace(-3, 0, 7, dtype=dtype)
    root, inverse = square_roots(torch.diag(x**2), 1e-3)
    assert_close(root, torch.diag(x), rtol=1e-3, atol=1e-4)
    assert_close(inverse.diagonal(), 1 / x, rtol=1e-2 if dtype == torch.float32 else 1e-9, atol=0)


def test_an_all_zero_batch_stays_all_zero_by_products() -> None:
    for spec in ("power:-1", "power:0.5", "power:2", "log1p"):
        p, gradient, _ = filtered(torch.zeros(4, 9), spec, "iterative")
        assert p.count_nonzero() == gradient.count_nonzero() == 0


def test_products_propagate_values_that_are_not_finite() -> None:
    z = gaussian(5, 8)
    z[2, 3] = math.nan
    assert spectral_filter(z, "power:0.5", solver="iterative").isnan().any()


def test_gain_by_products_takes_a_custom_gain() -> None:
    x = torch.logspace(-2, 0, 5)
    matrix, inverse = gain_by_products(torch.diag(x**2), lambda v: v / (v + 0.5))
    assert_close(matrix, torch.diag(x / (x + 0.5)), rtol=0, atol=2e-4)
    assert_close(inverse.diagonal(), 1 / x, rtol=2e-2, atol=0)


def running(spec: str, dim: int, **options: object) -> SpectralFilter:
    return SpectralFilter(spec, estimator="ema", dim=dim, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["power:0.5", "power:2", "power:-1", "log1p"])
@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("scale", ["rms", "raw"])
def test_a_running_filter_without_memory_equals_the_batch_filter(
    shape: tuple[int, int], spec: str, scale: str
) -> None:
    z = conditioned(shape, 30).requires_grad_()
    ours = running(spec, shape[1], momentum=0.0, every=1, scale=scale)
    theirs = SpectralFilter(spec, scale=scale)  # type: ignore[arg-type]
    upstream = gaussian(*shape, seed=7)
    for seed in range(2):  # the second batch leaves nothing of the first
        batch = z * (1 + seed)
        found, wanted = ours(batch), theirs(batch)
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))
        gradients = [torch.autograd.grad(p, z, upstream, retain_graph=True)[0] for p in (found, wanted)]
        assert relative(*gradients) < 1e-4


def test_a_running_correlation_is_the_documented_average() -> None:
    module = running("power:1", 6, momentum=0.8, every=3)
    expected = torch.zeros(6, 6, dtype=torch.float64)
    maps = []
    for step in range(7):
        z = gaussian(2, 10, 6, seed=step)
        module(z)
        rows = z.flatten(0, 1)
        expected = 0.8 * expected + 0.2 * rows.T @ rows / 20
        assert module.running is not None
        assert_close(module.running.correlation, expected / (1 - 0.8 ** (step + 1)))
        maps.append(module.running.held.clone())
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(maps)]
    assert changes == [False, False, True, False, False, True]
    values, vectors = torch.linalg.eigh(expected / (1 - 0.8**7))
    assert_close(maps[-1].double(), vectors * values.sqrt() @ vectors.T, rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_a_running_filter_alone() -> None:
    module = running("power:0.5", 5, branch="target", every=1)
    with pytest.raises(UserError, match="no spectrum before its first batch"):
        module.eval()(gaussian(8, 5))
    p = module.train()(gaussian(8, 5, seed=1).requires_grad_())
    assert not p.requires_grad
    before = copy.deepcopy(module.state_dict())
    module.eval()(gaussian(8, 5, seed=2))
    assert_close(module.state_dict(), before)


def test_a_running_filter_goes_on_from_its_state() -> None:
    whole, first, second = (running("log1p", 5, every=2) for _ in range(3))
    batches = [gaussian(8, 5, seed=i) for i in range(6)]
    outputs = [whole(z) for z in batches]
    for z in batches[:3]:
        first(z)
    second.load_state_dict(first.state_dict())
    for z, wanted in zip(batches[3:], outputs[3:], strict=True):
        assert_close(second(z), wanted, rtol=0, atol=0)


def test_a_running_filter_whitens_from_batches_smaller_than_the_rank() -> None:
    s = torch.linspace(2, 1, 32, dtype=torch.float64)
    z = gaussian(4096, 32) * s
    module = running("power:-1", 32, momentum=0.99, every=1, branch="target")
    for batch in z.split(8):
        module(batch)
    white = module.eval()(z)
    assert effective_rank(white) > 31
    assert effective_rank(white) > effective_rank(z)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"solver": "grams"}, "unknown solver 'grams': did you mean 'gram'"),
        ({"estimator": "em"}, "unknown estimator 'em': did you mean 'ema'"),
        ({"estimator": "ema"}, "pass dim, the width D"),
        ({"estimator": "ema", "dim": 8, "momentum": 1.0}, "0 <= momentum < 1 .* not 1 and 10"),
        ({"estimator": "ema", "dim": 8, "every": 0}, "every >= 1, not 0.99 and 0"),
    ],
)
def test_an_invalid_option_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SpectralFilter("power:1", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind"), [(FilterOptions(), SpectralFilter), (LearnedOptions(), LearnedFilter)]
)
def test_options_are_arguments_with_the_same_defaults(options: FilterOptions, kind: type[nn.Module]) -> None:
    arguments = inspect.signature(kind).parameters
    given = dataclasses.asdict(options)
    assert given == {name: arguments[name].default for name in given}
    assert set(arguments) - set(given) <= {"gain", "branch", "dim"}


def test_a_filter_shows_its_options() -> None:
    said = "power:1, branch=online, scale=rms, solver=gram, estimator=ema, momentum=0.99, every=5"
    assert said in repr(running("power:1", 8, solver="gram", every=5))
