from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rankgap.filters.gains import Scale
from rankgap.filters.learned import LearnedFilter, MonotoneGain
from rankgap.filters.spectral import Solver, spectral_filter
from tests.matrices import gaussian, with_spectrum

properties = settings(max_examples=60, derandomize=True, deadline=None)


def with_parameters(raw: Tensor) -> MonotoneGain:
    gain = MonotoneGain().double()
    with torch.no_grad():
        gain.raw.copy_(raw)
    return gain


@properties
@given(
    st.lists(st.floats(-20, 20), min_size=6, max_size=6), st.lists(st.floats(1e-6, 1e5), min_size=2, max_size=9)
)
def test_a_learned_gain_is_a_low_pass_whatever_its_parameters(raw: list[float], points: list[float]) -> None:
    gain = with_parameters(torch.tensor(raw))
    g = gain(torch.tensor(points, dtype=torch.float64).sort().values).detach()
    assert (g >= 0).all()
    assert (g.diff() >= -1e-12 * g[1:]).all()


def test_a_learned_gain_begins_near_the_square_root_and_can_be_identity_and_power_1() -> None:
    x = torch.logspace(-2, 1, 31, dtype=torch.float64)
    begins = MonotoneGain()(x).detach()
    assert float((begins / x.sqrt() - 1).abs().max()) < 0.12
    only = torch.full((6,), -20.0)
    flat = with_parameters(only.index_fill(0, torch.tensor(0), 1.0))(x).detach()
    assert float(flat[-1] / flat[0]) < 1.11
    steep = with_parameters(only.index_fill(0, torch.tensor(5), 1.0))(x).detach()
    assert_close(steep / steep[0], x / x[0], rtol=0.1, atol=0)
    assert (begins.dtype, MonotoneGain()(x.float()).dtype) == (torch.float64, torch.float32)


def definition(z: Tensor, gain: MonotoneGain, scale: Scale) -> Tensor:
    """P = Z W by SVD, with W's basis and spectrum constant and its gain not."""
    _, s, vt = torch.linalg.svd(z.detach(), full_matrices=False)
    keep = s > 1e-9 * s[..., :1]
    x = s / math.sqrt(z.shape[-2]) if scale == "rms" else s
    g = torch.where(keep, gain(torch.where(keep, x, 1.0)), 0.0)
    p: Tensor = z @ (vt.mT * g.unsqueeze(-2) @ vt)
    return p


@pytest.mark.parametrize("scale", ["rms", "raw"])
@pytest.mark.parametrize("solver", ["auto", "svd"])
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16), (2, 12, 40), (2, 40, 12)])
def test_a_learned_filter_trains_its_gain_and_passes_gradients_through_the_held_map(
    shape: tuple[int, ...], null: bool, solver: Solver, scale: Scale
) -> None:
    z = gaussian(*shape)
    if null:
        z = z - z.mean(-2, keepdim=True)
        z[..., -1] = z[..., 0]
    z.requires_grad_()
    module = LearnedFilter(scale, solver=solver).double()
    upstream = gaussian(*shape, seed=7)
    inputs = (z, module.gain.raw)
    ours, theirs = module(z), definition(z, module.gain, scale)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(*(torch.autograd.grad(p, inputs, upstream) for p in (ours, theirs)), strict=True):
        assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_gradcheck_of_a_learned_gain(shape: tuple[int, int]) -> None:
    module, z = LearnedFilter().double(), gaussian(*shape)
    raw = module.gain.raw.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: torch.func.functional_call(module, {"gain.raw": raw}, (z,)), raw)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_a_learned_gain_is_trained_by_products_as_well(shape: tuple[int, int]) -> None:
    z = with_spectrum(torch.logspace(1, -0.5, 12, dtype=torch.float64), *shape)
    exact, iterative = LearnedFilter(), LearnedFilter(solver="iterative")
    upstream = gaussian(*shape, seed=7)
    found, wanted = (torch.autograd.grad(m.double()(z), m.gain.raw, upstream)[0] for m in (iterative, exact))
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_a_learned_filter_at_fixed_parameters_is_the_filter_of_its_formula() -> None:
    gain = with_parameters(torch.tensor([-20.0, -20, 1, -20, -20, -20]))
    module = LearnedFilter().double()
    module.gain = gain
    z = gaussian(7, 11)
    weight = float(F.softplus(torch.tensor(10.0)))
    assert_close(module(z), spectral_filter(z, f"{weight}*s/(s+0.1)"), rtol=1e-6, atol=1e-6)


def test_a_learned_filter_can_be_copied_and_saved() -> None:
    module, z = LearnedFilter(), gaussian(6, 10)
    with torch.no_grad():
        module.gain.raw.add_(0.1)
    other = LearnedFilter()
    other.load_state_dict(module.state_dict())
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for each in (other, copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert_close(each(z), module(z), rtol=0, atol=0)
    assert not torch.allclose(LearnedFilter()(z), module(z))
    assert list(module.state_dict()) == ["gain.raw"]
