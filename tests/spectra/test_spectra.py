from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import NonFiniteError, UserError
from rankgap.spectra.effective_rank import (
    LARGE,
    Convention,
    effective_rank,
    effective_rank_of,
    mean_energy,
    rank_difference,
    rankme,
)
from rankgap.spectra.gram import cast_columns, rank_tolerance, singular_values
from rankgap.spectra.pair import pair_spectrum
from rankgap.spectra.processes import gather_rows
from tests.matrices import gaussian, orthogonal, with_spectrum

GOLDEN = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
properties = settings(max_examples=40, derandomize=True, deadline=None)
shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
seeds = st.integers(0, 10_000)
conventions = st.sampled_from(["correlation", "features"])


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16), (1, 5), (5, 1), (3, 7, 9), (2, 3, 9, 7)])
@pytest.mark.parametrize("center", [False, True])
def test_singular_values_are_the_svd_s(shape: tuple[int, ...], center: bool) -> None:
    z = gaussian(*shape) + 1
    plain = z - z.mean(-2, keepdim=True) if center else z
    assert_close(singular_values(z, center=center), torch.linalg.svdvals(plain), rtol=1e-9, atol=1e-6)


def test_singular_values_hold_six_decades_to_a_thousandth() -> None:
    s = torch.logspace(0, -6, 200, dtype=torch.float64)
    assert_close(singular_values(with_spectrum(s, 300, 200)), s, rtol=1e-3, atol=0)
    assert_close(singular_values(with_spectrum(s, 200, 300)), s, rtol=1e-3, atol=0)


def test_values_below_a_gram_matrix_s_resolution_are_zero() -> None:
    z = gaussian(40, 1) @ gaussian(1, 60, seed=1)
    assert singular_values(z)[1:].count_nonzero() == 0


def test_half_precision_is_read_as_it_is() -> None:
    z = gaussian(8, 12, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(singular_values(z), singular_values(z.double()), rtol=0, atol=0)


def test_golden_values_of_both_conventions_and_of_rankme() -> None:
    z = with_spectrum(GOLDEN, 6, 9)
    assert float(effective_rank(z)) == pytest.approx(2.940198, abs=1e-6)
    assert float(effective_rank(z, "features")) == pytest.approx(3.596115, abs=1e-6)
    assert float(effective_rank_of(GOLDEN.flip(0))) == pytest.approx(2.940198, abs=1e-6)
    p = torch.cat([GOLDEN / 10, torch.zeros(2)]) + 1e-7  # R = 6: the zeros have eps too
    assert float(rankme(z)) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-9)


def test_golden_values_of_rankme_s_eps_at_2048() -> None:
    one = torch.zeros(2048, dtype=torch.float64)
    one[0] = 1
    rank_one = torch.outer(one + 1, one + 2)
    flat = torch.eye(2048)
    assert float(rankme(rank_one)) == pytest.approx(1.00330, abs=5e-6)
    assert float(rankme(flat)) == pytest.approx(2050.78, abs=5e-3)


def test_closed_forms() -> None:
    assert float(effective_rank(torch.outer(torch.arange(1.0, 6), torch.ones(7)))) == pytest.approx(1)
    assert float(effective_rank(orthogonal(11)[:, :5])) == pytest.approx(5)
    assert float(effective_rank_of(torch.tensor([1.0, 0.0, 0.0]))) == 1


@properties
@given(shapes, seeds, conventions)
def test_effective_rank_lies_between_one_and_the_smaller_side(
    shape: tuple[int, int], seed: int, of: Convention
) -> None:
    rank = float(effective_rank(gaussian(*shape, seed=seed), of))
    assert 1 - 1e-9 <= rank <= min(shape) + 1e-9


@properties
@given(shapes, seeds, conventions, st.floats(1e-12, 1e12), st.sampled_from([torch.float32, torch.float64]))
def test_effective_rank_ignores_scale_rotation_and_order(
    shape: tuple[int, int], seed: int, of: Convention, scale: float, dtype: torch.dtype
) -> None:
    z = gaussian(*shape, seed=seed)
    turned = orthogonal(shape[0], seed) @ z @ orthogonal(shape[1], seed + 1) * scale
    shuffled = turned[torch.randperm(shape[0])][:, torch.randperm(shape[1])].to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    assert_close(effective_rank(shuffled, of), effective_rank(z, of), rtol=tolerance, atol=0)


@properties
@given(shapes, seeds, st.floats(0.1, 8))
def test_the_correlation_s_rank_is_at_most_the_features(shape: tuple[int, int], seed: int, steep: float) -> None:
    s = singular_values(gaussian(*shape, seed=seed)) ** steep
    assert effective_rank_of(s) <= effective_rank_of(s, "features") + 1e-9


def test_centring_takes_the_mean_away_and_nothing_else() -> None:
    z = gaussian(40, 6)
    z -= z.mean(0)
    assert_close(effective_rank(z + 100, center=True), effective_rank(z))
    assert float(effective_rank(z + 100)) == pytest.approx(1, abs=0.01)


def test_leading_dimensions_are_a_batch() -> None:
    z = gaussian(3, 2, 8, 5)
    each = torch.stack([torch.stack([effective_rank(m, "features") for m in row]) for row in z])
    assert_close(effective_rank(z, "features"), each)
    assert rankme(z).shape == mean_energy(z).shape == (3, 2)


def test_rank_difference_is_the_target_s_less_the_online_s() -> None:
    narrow, wide = gaussian(20, 2) @ gaussian(2, 9), gaussian(20, 9)
    assert_close(rank_difference(narrow, wide), effective_rank(wide) - effective_rank(narrow))
    assert rank_difference(narrow, wide, of="features", center=True) > 0


def test_no_gradient_is_carried() -> None:
    assert not effective_rank(gaussian(4, 3).requires_grad_()).requires_grad


def test_the_mean_s_share_of_energy() -> None:
    z = gaussian(30, 5)
    z -= z.mean(0)
    assert float(mean_energy(z)) == pytest.approx(0, abs=1e-12)
    assert float(mean_energy(torch.ones(7, 3))) == pytest.approx(1)
    shift = z.square().sum().div(30 * 5).sqrt()  # as much energy in the mean as about it
    assert float(mean_energy(z + shift)) == pytest.approx(0.5)


@pytest.mark.parametrize("score", [effective_rank, rankme, lambda z: rank_difference(torch.eye(2), z)])
@pytest.mark.parametrize(
    ("z", "says"),
    [
        (torch.zeros(4, 3), "all values are zero"),
        (torch.stack([torch.eye(3), torch.zeros(3, 3)]), "all values are zero"),
        (torch.full((4, 3), math.nan), "12 of 12 values are not finite"),
        (torch.tensor([[1.0, math.inf]]), "1 of 2 values are not finite"),
        (torch.ones(5), r"got float32 of shape \(5,\)"),
        (torch.ones(0, 5), r"shape \(0, 5\)"),
        (torch.ones(5, 5, dtype=torch.int64), "got int64"),
    ],
)
def test_a_batch_without_a_rank_is_an_error(score: Callable[[Tensor], Tensor], z: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        score(z)


def test_equal_rows_have_no_centred_rank() -> None:
    with pytest.raises(UserError, match="all rows are equal"):
        effective_rank(gaussian(1, 30).expand(7, 30), center=True)


@pytest.mark.parametrize("z", [GOLDEN.diag().numpy(), GOLDEN.diag().tolist()])
def test_an_array_is_refused_with_what_to_pass(z: Any) -> None:
    with pytest.raises(
        UserError, match=rf"rankme expects a tensor, got {type(z).__name__}; pass torch\.as_tensor\(z\)"
    ):
        rankme(z)
    assert rankme(torch.as_tensor(z)) == rankme(GOLDEN.diag())


def test_an_unknown_convention_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'features'"):
        effective_rank(torch.eye(3), of="feature")  # type: ignore[arg-type]


def test_a_batch_that_is_not_finite_is_never_given_a_spectrum() -> None:
    z = gaussian(6, 9)
    z[2, 3] = math.nan
    with pytest.raises(NonFiniteError, match="singular values"):
        singular_values(z)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_decomposition_is_tried_twice_then_named(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    solve, left = torch.linalg.eigvalsh, [failures]

    def stubborn(gram: Tensor) -> Any:
        if left[0]:
            left[0] -= 1
            return torch.linalg.cholesky(-torch.eye(2))  # raises LinAlgError
        return solve(gram)

    monkeypatch.setattr(torch.linalg, "eigvalsh", stubborn)
    z = gaussian(5, 8)
    if failures == 1:
        assert_close(singular_values(z), torch.linalg.svdvals(z), rtol=1e-9, atol=0)
    else:
        with pytest.raises(RuntimeError, match="singular values: the eigen-decomposition of a 5 x 5"):
            singular_values(z)


def test_tolerance_is_matrix_rank_s_at_float32_and_a_gram_matrix_s_at_float64() -> None:
    eps32, eps64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    assert rank_tolerance(256, 2048, torch.float32) == pytest.approx(2048 * eps32)
    assert rank_tolerance(256, 2048, torch.bfloat16) == pytest.approx(2048 * eps32)
    assert rank_tolerance(300, 10, torch.float64) == pytest.approx(math.sqrt(300 * eps64))


def test_rows_of_one_process_are_its_own() -> None:
    z = gaussian(4, 3).requires_grad_()
    assert_close(gather_rows(z), z.detach())
    assert not gather_rows(z).requires_grad


@pytest.mark.parametrize(
    "s",
    [torch.logspace(0, -p, 640, dtype=torch.float64) for p in (0, 1, 3, 6)]
    + [
        torch.cat([torch.ones(k), torch.full((640 - k,), rest)]).double()
        for k in (1, 20)
        for rest in (0, 1e-4, 1e-3)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_large_batch_of_few_bits_has_the_rank_of_its_float64(s: Tensor, dtype: torch.dtype) -> None:
    assert len(s) >= LARGE
    z = (100 * with_spectrum(s, 800, 640)).to(dtype)
    exact = effective_rank_of(torch.linalg.svdvals(z.double()))
    assert_close(effective_rank(z), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_large_batch_of_any_scale_has_a_rank(scale: float) -> None:
    z = gaussian(LARGE, LARGE, dtype=torch.float32)
    assert_close(effective_rank(z * scale), effective_rank(z.double()), rtol=1e-4, atol=0)


def wide_rows(n: int, seed: int = 0) -> Tensor:
    """Rows of more columns than are cast at once, the last part narrower than there are rows."""
    return torch.randn(n, 2**15 + 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("center", [False, True])
def test_wide_batches_are_read_in_parts_with_the_same_result(center: bool) -> None:
    z = wide_rows(24) + 0.1
    plain = z.double() - z.double().mean(0) if center else z.double()
    s = torch.linalg.eigvalsh(plain @ plain.T).clamp_min(0).sqrt().flip(0)
    assert_close(singular_values(z, center=center), s, rtol=1e-9, atol=1e-4)
    assert_close(singular_values(z[None], center=center)[0], s, rtol=1e-9, atol=1e-4)
    share = 24 * z.double().mean(0).square().sum() / z.double().square().sum()
    assert_close(mean_energy(z), share, rtol=1e-12, atol=0)
    assert [part.shape[1] for part in cast_columns(z)] == [2**14, 2**14, 5]
    assert len(list(cast_columns(z.T))) == len(list(cast_columns(z[:, : 2**14]))) == 1


def test_a_wide_pair_is_read_in_parts_with_the_same_result() -> None:
    p, t = wide_rows(24), wide_rows(24, seed=1)
    found = pair_spectrum(p, t)
    v = torch.linalg.svd(t.double(), full_matrices=False).Vh.mT
    seen, sent = p.double() @ v, t.double() @ v
    assert_close(found.transfer, (seen * sent).sum(0) / sent.square().sum(0), rtol=1e-7, atol=1e-9)
    assert_close(found.spectrum_online, singular_values(p), rtol=1e-9, atol=0)
    p[3, -1] = math.nan
    with pytest.raises(NonFiniteError, match="the online batch is not finite"):
        pair_spectrum(p, t)
    with pytest.raises(NonFiniteError, match="a pair of branches"):
        pair_spectrum(t, p)
