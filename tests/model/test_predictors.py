from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.errors import NonFiniteError, UserError
from rankgap.filters.learned import LearnedFilter
from rankgap.model.alignments import regression, squared
from rankgap.model.closed_forms import CLOSED_FORMS, ClosedForm, ClosedFormPredictor, largest_eigenvalue
from rankgap.model.maps import MAPS, Place, find_map
from rankgap.run.recipes import load_recipe, override
from tests.matrices import gaussian, orthogonal

properties = settings(max_examples=60, derandomize=True, deadline=None)
NAMES = ["directpred", "directset:0.3", "directset:1", "directset:2", "directset:7", "directcopy", "isoloss"]
# As published, of eigenvalues e whose largest is 1 (then the paper's eps max_j e_j is the code's eps as well).
PUBLISHED: dict[str, Callable[[Tensor], Tensor]] = {
    "directpred": lambda e: e.sqrt() + 0.1,
    "directset:0.3": lambda e: e**0.3 + 0.1,
    "directset:1": lambda e: e + 0.1,
    "directset:2": lambda e: e * e + 0.1,
    "directset:7": lambda e: e**7 + 0.1,
    "directcopy": lambda e: (e + 0.25) ** 1.0,
    "isoloss": lambda e: (e + 0.0) ** 0.5,
}


def form(name: str) -> ClosedForm:
    kind, argument = find_map(name, "online")
    found = kind.configure(kind.options, argument)
    assert isinstance(found, ClosedForm)
    return found


def predictor(form: ClosedForm, dim: int) -> ClosedFormPredictor:
    return ClosedFormPredictor(Place(dim=dim), form)


def correlation(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    v = orthogonal(len(eigenvalues), seed)
    c: Tensor = v * eigenvalues @ v.T
    return c


def test_every_closed_form_has_its_published_formula_here() -> None:
    assert set(CLOSED_FORMS) | {"directset"} == {name.partition(":")[0] for name in PUBLISHED}
    assert list(PUBLISHED) == NAMES


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_closed_form_is_the_published_one_at_every_scale_and_in_null_directions(name: str, size: float) -> None:
    relative = torch.tensor([1.0, 0.5, 0.02, 1e-4, 0.0, 0.0], dtype=torch.float64)
    v = orthogonal(6)
    expected = v * PUBLISHED[name](relative) @ v.T
    assert_close(form(name)(size * correlation(relative)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eps", [0.1, 0.01], ids=["the paper's", "the authors' published command"])
def test_directpred_has_either_published_eps(eps: float) -> None:
    """luckmatters, byol_trainer.py: the spectrum over its maximum, its root, plus dyn_eps (0.01 in the README)."""
    chosen = override(load_recipe("cifar", "byol"), {"online.directpred.eps": eps})
    found = chosen.options("online", MAPS["directpred"])
    assert isinstance(found, ClosedForm)
    assert (found.momentum, CLOSED_FORMS["directpred"].eps) == (0.3, 0.1)
    z = gaussian(40, 6)
    c = z.T @ z / 40
    values, vectors = torch.linalg.eigh(c)
    scale = (values.clamp_min(0) / values.max()).sqrt() + eps
    assert_close(found(c), vectors @ torch.diag(scale) @ vectors.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_gives_null_directions_no_gain(name: str) -> None:
    z = gaussian(4, 40, dtype=torch.float32).double()
    c = z.T @ z / 4
    assert torch.linalg.eigvalsh(c)[0] < 0
    null = torch.linalg.svd(z)[2][4:]
    assert_close(form(name)(c) @ null.T, form(name).eps * null.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_correlation_leaves_eps_alone(name: str) -> None:
    assert_close(form(name)(torch.zeros(5, 5, dtype=torch.float64)), form(name).eps * torch.eye(5).double())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_named(name: str, bad: float) -> None:
    z = gaussian(8, 5)
    z[3, 2] = bad
    with pytest.raises(NonFiniteError, match="closed-form predictor: the input is not finite"):
        predictor(form(name), 5)(z)


@pytest.mark.parametrize("name", ["directset:1", "directset:2", "directcopy"])
def test_whole_powers_decompose_nothing_of_full_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = torch.linalg.eigvalsh

    def small(matrix: Tensor) -> Tensor:
        assert len(matrix) <= 32
        values: Tensor = solve(matrix)
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", small)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    form(name)(correlation(torch.linspace(1, 0, 50).double()))


SPECTRA = {
    "falls": (1 / torch.arange(1, 257), 1e-12),
    "one": (torch.ones(1), 1e-12),
    "few": (torch.linspace(1, 0.1, 5), 1e-12),
    "stands apart": (torch.cat([torch.ones(1), torch.full((255,), 0.9)]), 1e-12),
    "two alike": (torch.cat([torch.tensor([1, 0.999]), torch.full((254,), 0.1)]), 1e-6),
    "equal": (torch.ones(200), 1e-12),
    "rank three": (torch.cat([torch.ones(3), torch.zeros(200)]), 1e-12),
    "a ramp": (torch.linspace(1, 0, 256), 1e-2),
    "nearly flat": (torch.linspace(1, 0.5, 256), 1e-2),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_largest_eigenvalue_is_as_near_as_it_says_and_never_above(name: str) -> None:
    spectrum, most = SPECTRA[name]
    for seed in range(4):
        c = 1e-6 * correlation(spectrum.double(), seed)
        error = 1 - float(largest_eigenvalue(c) / torch.linalg.eigvalsh(c)[-1])
        assert -1e-12 < error < most


def test_the_largest_eigenvalue_of_nothing_is_zero() -> None:
    assert largest_eigenvalue(torch.zeros(40, 40, dtype=torch.float64)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_follows_its_batches_and_is_held_constant(name: str) -> None:
    module = predictor(form(name), 6)
    m = form(name).momentum
    running = torch.zeros(6, 6, dtype=torch.float64)
    for step in range(4):
        z = gaussian(2, 10, 6, seed=step).requires_grad_()
        p = module(z)
        rows = z.detach().flatten(0, 1)
        running = m * running + (1 - m) * rows.T @ rows / 20  # from zero, as Halvagal et al.: only ratios count
        values, v = torch.linalg.eigh(running)
        w = v * PUBLISHED[name](values / values.max()) @ v.T
        assert_close(p.detach(), z.detach() @ w, rtol=1e-5, atol=1e-5)
        upstream = gaussian(2, 10, 6, seed=9)
        (gradient,) = torch.autograd.grad(p, z, upstream)
        assert_close(gradient, upstream if name == "isoloss" else upstream @ w, rtol=1e-5, atol=1e-5)


def test_eps_lets_gradients_into_null_directions_and_isoloss_all_of_them() -> None:
    z = gaussian(4, 12).requires_grad_()
    null = torch.linalg.svd(z.detach())[2][4:]
    upstream = gaussian(4, 12, seed=1)
    for name, share in (("directpred", 0.1), ("directcopy", 0.25), ("isoloss", 1.0)):
        (gradient,) = torch.autograd.grad(predictor(form(name), 12)(z), z, upstream)
        assert_close(gradient @ null.T, share * upstream @ null.T, rtol=1e-5, atol=1e-6)


def euclidean_isoloss(z: Tensor, p: Tensor, target: Tensor) -> Tensor:
    """Halvagal et al. 2023: the target is shifted so that what is left is the predictor's error."""
    return (z - (target + z - p).detach()).square().sum(1).mean()


def cosine_isoloss(z: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """Halvagal et al. 2023, as their code has it; W^1/2 by definition."""
    values, v = torch.linalg.eigh(w)
    root = z @ (v * values.clamp_min(0).sqrt() @ v.T)
    p, norm = (z @ w).detach(), target.norm(dim=1)
    pull = (z * target).sum(1) / (p.norm(dim=1) * norm)
    push = 0.5 * (p * target).sum(1) / (p.norm(dim=1) ** 3 * norm) * root.norm(dim=1) ** 2
    loss: Tensor = -2 * (pull - push).mean()
    return loss


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.25])
def test_straight_gradients_make_squared_and_regression_the_published_isolosses(alpha: float, eps: float) -> None:
    z, target = gaussian(2, 12, 6).requires_grad_(), gaussian(2, 12, 6, seed=1)
    module = predictor(ClosedForm(alpha=alpha, eps=eps, momentum=0.9, straight=True), 6)
    module(gaussian(2, 12, 6, seed=2))
    p = module(z)
    w = module.running.held.double()
    pairs = [(z[i], target[1 - i]) for i in (0, 1)]

    ours = squared(p, target)
    theirs = torch.stack([euclidean_isoloss(a, a @ w, b) for a, b in pairs]).sum()
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_close(
        *(torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (ours, theirs)), rtol=1e-5, atol=1e-6
    )

    theirs = torch.stack([cosine_isoloss(a, w, b) for a, b in pairs]).sum()
    found, wanted = (
        torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (regression(p, target), theirs)
    )
    assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    through = torch.autograd.grad(regression(z @ w, target), z)[0]  # what is not straight
    assert (through - wanted).norm() > 0.1 * wanted.norm()


def test_a_predictor_stays_as_it_is_in_evaluation_and_needs_a_batch_before() -> None:
    module = predictor(form("directcopy"), 5)
    with pytest.raises(UserError, match="no spectrum before its first batch"):
        module.eval()(gaussian(8, 5))
    module.train()(gaussian(8, 5))
    before = copy.deepcopy(module.state_dict())
    z = gaussian(8, 5, seed=1)
    assert_close(module.eval()(z), z @ module.running.held.double())
    assert_close(module.state_dict(), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_goes_on_from_its_state_and_can_be_saved_whole(name: str) -> None:
    whole, first, second = (predictor(form(name), 5) for _ in range(3))
    batches = [gaussian(8, 5, seed=i) for i in range(6)]
    outputs = [whole(z) for z in batches]
    for z in batches[:3]:
        first(z)
    second.load_state_dict(first.state_dict())
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    for other in (second, torch.load(file, weights_only=False), copy.deepcopy(first)):
        for z, wanted in zip(batches[3:], outputs[3:], strict=True):
            assert_close(other(z), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("module", [predictor(form("isoloss"), 20), LearnedFilter()], ids=["isoloss", "learned"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_precision_leave_predictors_in_float32(module: nn.Module, dtype: torch.dtype) -> None:
    z = (60 * gaussian(8, 20)).to(dtype)
    alone = copy.deepcopy(module)(z.float())
    with torch.autocast("cpu", dtype=dtype):
        p = copy.deepcopy(module)(z)
    assert p.dtype == torch.float32
    assert_close(p, alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClosedForm(alpha=0, eps=0.1, momentum=0.3), "alpha > 0 and eps >= 0, got 0 and 0.1"),
        (lambda: ClosedForm(alpha=math.inf, eps=0.1, momentum=0.3), "got inf and 0.1"),
        (lambda: ClosedForm(alpha=1, eps=-0.1, momentum=0.3), "got 1 and -0.1"),
        (lambda: ClosedForm(alpha=1, eps=math.nan, momentum=0.3), "got 1 and nan"),
        (lambda: predictor(ClosedForm(alpha=1, eps=0, momentum=1), 3), "0 <= momentum < 1"),
        (lambda: predictor(dataclasses.replace(form("directpred"), momentum=-0.1), 3), "0 <= momentum < 1"),
        (lambda: predictor(form("directpred"), 3)(torch.ones(3)), r"predictor expects .* shape \(3,\)"),
        (lambda: predictor(form("directpred"), 3)(torch.ones(2, 3).int()), "got int32"),
        (lambda: LearnedFilter()(torch.ones(3)), r"expects .* shape \(3,\)"),
        (lambda: LearnedFilter("rsm")(torch.eye(3)), "did you mean 'rms'"),  # type: ignore[arg-type]
        (lambda: LearnedFilter(solver="grm")(torch.eye(3)), "did you mean 'gram'"),  # type: ignore[arg-type]
        (lambda: form("directset:-1"), "'directset:-1': expected directset:alpha"),
    ],
)
def test_an_invalid_predictor_or_input_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize("name", ["predictor", "power:1", "log1p", "learned"])
def test_other_names_are_not_closed_forms(name: str) -> None:
    kind, _ = find_map(name, "online")
    assert not isinstance(kind.options, ClosedForm)


def test_predictors_say_what_they_are() -> None:
    assert "alpha=0.5, eps=0.1, momentum=0.3, straight=False" in repr(predictor(form("directpred"), 4))
