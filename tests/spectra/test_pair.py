from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rankgap.errors import NonFiniteError, UserError
from rankgap.spectra.gram import singular_values
from rankgap.spectra.pair import eigenspace_alignment, low_pass_score, measured_filter, pair_spectrum, transfer
from tests.matrices import gaussian, with_spectrum

GOLDEN = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
properties = settings(max_examples=40, derandomize=True, deadline=None)


@pytest.mark.parametrize("shape", [(10, 25), (25, 10)])
def test_alignment_is_the_cosine_of_an_eigenvector_and_its_image(shape: tuple[int, int]) -> None:
    online, target = gaussian(*shape), gaussian(*shape, seed=1)
    v = torch.linalg.eigh(target.T @ target / shape[0])[1].flip(1)[:, :4]
    image = online.T @ online / shape[0] @ v
    expected = (image * v).sum(0).abs() / image.norm(dim=0)
    assert_close(eigenspace_alignment(online, target, top=4), expected, rtol=1e-9, atol=1e-12)


def test_alignment_is_one_in_a_shared_eigenspace_and_zero_where_online_is_dead() -> None:
    target = with_spectrum(GOLDEN, 6, 9)
    assert_close(eigenspace_alignment(with_spectrum(GOLDEN.flip(0), 6, 9), target), torch.ones_like(GOLDEN))
    dead = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    diagonal = torch.diag(GOLDEN)
    assert_close(eigenspace_alignment(torch.diag(dead), diagonal), dead)


def test_alignment_leaves_the_target_s_null_space_out() -> None:
    z = gaussian(8, 20, dtype=torch.float32)
    assert len(eigenspace_alignment(z, z - z.mean(0))) == 7


def test_measured_filter_finds_the_gain_that_was_applied() -> None:
    s = torch.linspace(5, 1, 8, dtype=torch.float64)
    target = with_spectrum(s, 12, 30)
    found_s, found_g = measured_filter(with_spectrum(s**1.5, 12, 30), target)
    assert_close(found_s, s)
    assert_close(found_g, s.sqrt())


@properties
@given(st.floats(0.1, 3), st.integers(0, 10_000))
def test_low_pass_scores_one_high_pass_minus_one_and_a_multiple_of_the_identity_zero(
    power: float, seed: int
) -> None:
    target = gaussian(9, 14, seed=seed, dtype=torch.float32)
    u, s, vt = torch.linalg.svd(target.double(), full_matrices=False)
    assume((s[:-1] / s[1:]).min() > 1 + 1e-4)
    for p, expected in ((power, 1.0), (-power, -1.0), (0.0, 0.0)):
        score = low_pass_score(*measured_filter(3 * (u * s ** (1 + p)) @ vt, target))
        assert float(score) == pytest.approx(expected, abs=1e-12)


def test_the_score_weighs_pairs_by_target_energy() -> None:
    s, g = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 3.0, 1.0])
    assert float(low_pass_score(s, g)) == pytest.approx((9 + 4 - 36) / 49)
    order = torch.tensor([2, 0, 1])
    assert_close(low_pass_score(s[order], g[order]), low_pass_score(s, g))


@properties
@given(st.integers(0, 10_000), st.booleans())
def test_the_transfer_is_the_map_s_diagonal_in_the_target_s_eigenbasis(seed: int, wide: bool) -> None:
    target = gaussian(*(6, 9) if wide else (9, 6), seed=seed)
    matrix, mean = gaussian(target.shape[1], target.shape[1], seed=seed + 1), target.new_zeros(target.shape)
    if not wide:  # what P has of its own, in every row alike, where T has no mean
        target, mean = target - target.mean(0), mean + 5
    vt = torch.linalg.svd(target, full_matrices=False).Vh
    online = target @ matrix + mean
    s, found = transfer(online, target)
    expected = (vt @ matrix * vt).sum(1)
    assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert (found.abs() <= measured_filter(online, target)[1] * (1 + 1e-9)).all()
    assert_close(pair_spectrum(online, target).transfer_score, low_pass_score(s, expected))


def test_the_transfer_of_a_spectral_filter_is_its_gain_and_knows_its_sign() -> None:
    target = with_spectrum(GOLDEN, 6, 9)
    assert_close(transfer(with_spectrum(GOLDEN**1.5, 6, 9), target)[1], GOLDEN.sqrt())
    assert_close(transfer(-target, target)[1], -torch.ones_like(GOLDEN))


def test_gains_below_zero_are_ranked_and_tied_as_others_are() -> None:
    assert float(low_pass_score(GOLDEN, -1 / GOLDEN)) == pytest.approx(1)
    assert float(low_pass_score(GOLDEN, GOLDEN.new_tensor([-1, -1 - 1e-9, -1, -1]))) == 0


def test_a_clipped_gain_still_scores_one() -> None:
    assert float(low_pass_score(GOLDEN, (GOLDEN - 2).clamp_min(0))) == pytest.approx(1)


def test_a_dead_target_shows_no_filter() -> None:
    s, g = measured_filter(gaussian(3, 4), torch.zeros(3, 4))
    assert len(s) == len(g) == 0
    assert float(low_pass_score(s, g)) == 0


def test_a_pair_has_one_shape() -> None:
    with pytest.raises(UserError, match=r"one shape \(N, D\), got \(4, 3\) and \(4, 5\)"):
        eigenspace_alignment(torch.ones(4, 3), torch.ones(4, 5))


def test_a_pair_s_spectra_are_its_batches_and_zero_in_the_null_space() -> None:
    online, target = gaussian(8, 20), gaussian(8, 20, seed=1)
    target -= target.mean(0)
    pair = pair_spectrum(online, target)
    assert_close(pair.spectrum_online, singular_values(online))
    assert_close(pair.spectrum_target, singular_values(target), rtol=1e-7, atol=1e-12)
    assert pair.spectrum_target[-1] == 0
    assert len(pair.eigenspace_alignment) == len(pair.measured_filter) == 7
    assert_close(pair.low_pass_score, low_pass_score(*measured_filter(online, target)))


def test_a_pair_that_is_not_finite_is_never_given_a_spectrum() -> None:
    z = gaussian(6, 9)
    z[2, 3] = math.nan
    for pair in ((z, gaussian(6, 9)), (gaussian(6, 9), z)):
        with pytest.raises(NonFiniteError, match="a pair of branches"):
            measured_filter(*pair)
