from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.evaluate import (
    alignment,
    alpha_req,
    cluster_learnability,
    intrinsic_dimension,
    lidar,
    log_local_dimension,
    nesum,
    participation_ratio,
    stable_rank,
    uniformity,
)
from rankgap.spectra.effective_rank import effective_rank
from tests.matrices import gaussian, orthogonal


def with_spectrum(energy: Tensor, rows: int) -> Tensor:
    """A centred batch whose covariance has these eigenvalues (up to one factor)."""
    d = len(energy)
    u = gaussian(rows, d)
    u, _ = torch.linalg.qr(u - u.mean(0))
    v, _ = torch.linalg.qr(gaussian(d, d, seed=1))
    z: Tensor = u * energy.sqrt() @ v.T
    return z


def test_golden_values() -> None:
    z = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert float(stable_rank(z)) == pytest.approx(1.875)
    assert float(participation_ratio(z)) == pytest.approx(2.542373, abs=1e-6)
    power_law = torch.arange(1, 151, dtype=torch.float64).pow(-1.3)
    assert float(alpha_req(with_spectrum(power_law, 400))) == pytest.approx(1.3, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(3, 20), st.integers(2, 12), st.integers(0, 999), st.floats(0, 4))
def test_scores_keep_their_order(n: int, d: int, seed: int, steep: float) -> None:
    z = gaussian(n, d, seed=seed) * torch.arange(1, d + 1).pow(-steep)
    chain = [
        nesum(z),
        participation_ratio(z, center=True),
        effective_rank(z, center=True),
        effective_rank(z, of="features", center=True),
        torch.tensor(float(min(n - 1, d))),
    ]
    for low, high in pairwise(chain):
        assert float(low) <= float(high) * (1 + 1e-9)


def test_nesum_is_of_the_centred_covariance() -> None:
    z = gaussian(30, 5) + 3
    values = torch.linalg.eigvalsh(torch.cov(z.T))
    assert_close(nesum(z), values.sum() / values.max())


def test_lidar_is_its_formula_written_out() -> None:
    z = gaussian(50, 4, 6) + 2 * gaussian(50, 1, 6, seed=1)
    means = z.mean(1)
    within = (z - means[:, None]).reshape(-1, 6)
    sw = within.T @ within / 200 + 1e-4 * torch.eye(6, dtype=torch.float64)
    sb = (means - means.mean(0)).T @ (means - means.mean(0)) / 50
    root = torch.from_numpy(linalg.fractional_matrix_power(sw.numpy(), -0.5))
    values = torch.linalg.eigvalsh(root @ sb @ root)
    p = values / values.sum() + 1e-7
    assert_close(lidar(z), (-(p * p.log()).sum()).exp(), rtol=1e-6, atol=0)


def test_lidar_counts_the_directions_in_which_images_differ_more_than_views() -> None:
    images = torch.zeros(200, 1, 8, dtype=torch.float64)
    images[..., :3] = gaussian(200, 1, 3)
    z = images + 1e-3 * gaussian(200, 5, 8, seed=2)
    assert float(lidar(z)) == pytest.approx(3, abs=0.1)


def test_uniformity_and_alignment_are_their_formulas() -> None:
    z, other = gaussian(12, 4), gaussian(12, 4, seed=3)
    x, y = (torch.nn.functional.normalize(v, dim=1) for v in (z, other))
    pairs = [math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(12) for j in range(i)]
    assert float(uniformity(z)) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert_close(alignment(z, other), (x - y).square().sum(1).mean())
    assert_close(alignment(z, 3 * z), torch.tensor(0.0, dtype=torch.float64))
    assert float(uniformity(torch.ones(5, 3))) == pytest.approx(0.0)
    assert float(uniformity(torch.tensor([[1.0], [-1.0]]))) == pytest.approx(-8.0)


def test_batches_without_a_score_are_refused() -> None:
    with pytest.raises(UserError, match="all rows are equal"):
        nesum(torch.ones(4, 3))
    with pytest.raises(UserError, match="two eigenvalues above 0 among numbers 4 to 100, got 1"):
        alpha_req(gaussian(20, 4))
    with pytest.raises(UserError, match=r"lidar expects \(N, q, D\).*got \(4, 3\)"):
        lidar(torch.ones(4, 3))
    with pytest.raises(UserError, match="not finite"):
        lidar(torch.full((4, 2, 3), math.nan))
    with pytest.raises(UserError, match="N >= 2"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(UserError, match="of one shape"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))


@pytest.mark.parametrize("d", [2, 5])
def test_two_nn_finds_the_dimension_of_a_uniform_cube(d: int) -> None:
    cube = torch.rand(2000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embedded = cube @ torch.linalg.qr(gaussian(12, 12))[0][:d]
    found = float(intrinsic_dimension(embedded))
    assert found == pytest.approx(d, rel=0.1)
    assert float(intrinsic_dimension(1e3 * embedded)) == pytest.approx(found, rel=1e-6)
    twice = torch.cat([embedded, embedded[:5]])
    assert float(intrinsic_dimension(twice)) == pytest.approx(found, rel=0.02)
    with pytest.raises(UserError, match="three distinct rows"):
        intrinsic_dimension(torch.ones(9, 3))


def ball(rows: int, d: int) -> Tensor:
    """Rows spread evenly in the unit ball of d dimensions."""
    direction = torch.nn.functional.normalize(gaussian(rows, d), dim=1)
    radius = torch.rand(rows, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** (1 / d)
    return direction * radius


def test_log_lid_is_the_method_of_moments_over_each_row_s_neighbours() -> None:
    z = gaussian(90, 4) + 1e5  # products would round the distances of such rows
    found = NearestNeighbors(n_neighbors=8).fit(z.numpy()).kneighbors()[0]  # without the row itself
    logs = [math.log(-(mu := sum(row) / 8) / (mu - row[-1])) for row in found.tolist()]
    assert float(log_local_dimension(z, k=8)) == pytest.approx(sum(logs) / 90, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_log_lid_finds_the_dimension_of_a_ball_on_a_sheet(d: int) -> None:
    z = ball(2000, d)
    expected = (64 * d + 1) / 63  # of a row far from the edge; rows near it have a lower one
    found = math.exp(float(log_local_dimension(z)))
    assert found == pytest.approx(expected, rel=0.12)
    sheet = z @ orthogonal(12)[:d]
    for other in (sheet, 1e3 * sheet, sheet - 50):
        assert math.exp(float(log_local_dimension(other))) == pytest.approx(found, rel=1e-5)


def test_log_lid_sees_a_line_that_the_rank_of_many_dimensions_does_not() -> None:
    t = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = torch.cos(2 * math.pi * (t * torch.arange(1, 17) + torch.linspace(0, 1, 16)))  # it winds through 16
    assert float(effective_rank(line, center=True)) > 15
    assert math.exp(float(log_local_dimension(line, k=16))) < 1.5


def test_rows_without_neighbours_at_different_distances_have_no_lid() -> None:
    z = gaussian(200, 3)
    copies = torch.cat([z, z[:1].expand(70, 3)])  # 71 rows whose 64 nearest are copies of themselves
    assert float(log_local_dimension(copies)) == pytest.approx(float(log_local_dimension(z)), abs=0.2)
    with pytest.raises(UserError, match=r"N > k = 64, got \(64, 3\)"):
        log_local_dimension(gaussian(64, 3))
    with pytest.raises(UserError, match=r"got \(8, 9, 3\)"):
        log_local_dimension(gaussian(8, 9, 3), k=4)
    with pytest.raises(UserError, match="no row has 8 neighbours at different distances"):
        log_local_dimension(torch.ones(20, 3), k=8)
    broken = gaussian(20, 3)
    broken[0, 0] = math.nan
    with pytest.raises(UserError, match="log_local_dimension: 1 of 60 values are not finite"):
        log_local_dimension(broken, k=8)


def test_cluster_learnability_is_the_online_accuracy_of_the_nearest_predecessor() -> None:
    centres = 10 * torch.eye(4, dtype=torch.float64)
    z = centres.repeat_interleave(50, 0) + 0.01 * gaussian(200, 4)
    # Each cluster is wrong once at most, when its first row comes.
    assert 1 - 3 / 199 <= float(cluster_learnability(z, clusters=4)) < 1
    assert float(cluster_learnability(gaussian(200, 30), clusters=4)) < 0.8
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    rows = torch.nn.functional.normalize(gaussian(6, 2, seed=5), dim=1)
    labels = torch.as_tensor(KMeans(2, n_init=3, random_state=3).fit_predict(rows[order].numpy()))
    hits = 0
    for i in range(1, 6):
        nearest = max(range(i), key=lambda j: float(rows[order[i]] @ rows[order[j]]))
        hits += int(labels[nearest] == labels[i])
    assert float(cluster_learnability(rows, clusters=2, seed=3)) == pytest.approx(hits / 5)
    with pytest.raises(UserError, match="N >= 10"):
        cluster_learnability(gaussian(4, 3))
