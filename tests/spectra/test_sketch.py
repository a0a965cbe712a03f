from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.gram import singular_values
from rankgap.spectra.sketch import (
    COLUMNS,
    WIDEST,
    Sketch,
    SketchSize,
    sketch_for,
    sketched_effective_rank,
    with_energy,
)
from tests.matrices import gaussian

properties = settings(max_examples=25, derandomize=True, deadline=None)


def matrix(sketch: Sketch) -> Tensor:
    """The sketch as a matrix (D, m)."""
    return sketch(torch.eye(sketch.size.width, dtype=torch.float64))[0]


def test_a_sketch_is_a_matrix_of_64_equal_signed_entries_a_column() -> None:
    s = matrix(Sketch.make(600, 256))
    assert s.shape == (600, 256)
    entries = s[s != 0]
    assert_close(entries.abs(), torch.full_like(entries, 1 / 8))
    assert ((s != 0).sum(1) == 64).all()
    assert (entries > 0).double().mean() == pytest.approx(0.5, abs=0.05)
    per_sum = (s != 0).sum(0)
    assert int(per_sum.max() - per_sum.min()) <= 64  # the last block is not full


@properties
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 99), st.sampled_from(["float64", "bfloat16"]))
def test_a_sketch_is_linear_keeps_the_energy_and_ignores_strides(
    width: int, rows: int, seed: int, dtype: str
) -> None:
    sketch = Sketch.make(width, 64, seed=seed)
    z = gaussian(width, rows, seed=seed).to(getattr(torch, dtype)).T
    found, energy = sketch(z)
    assert found.dtype == torch.float64
    assert_close(found, z.double() @ matrix(sketch))
    assert_close(energy, z.double().square().sum())


def test_a_sketch_is_the_same_wherever_it_is_made_and_differs_by_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = Sketch.make(100, 64), Sketch.make(100, 64), Sketch.make(100, 64, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own random numbers are left alone
    assert torch.equal(matrix(first), matrix(again))
    assert not torch.equal(matrix(first), matrix(other))


def test_up_to_m_columns_a_sketch_is_an_isometry() -> None:
    s = matrix(Sketch.make(50, 64))
    assert_close(s @ s.T, torch.eye(50, dtype=torch.float64))


def test_products_of_rows_are_kept_in_expectation_with_variance_one_over_m() -> None:
    width, columns, seeds = 320, 64, 200
    products = torch.stack([s @ s.T for s in (matrix(Sketch.make(width, columns, seed=i)) for i in range(seeds))])
    error = products - torch.eye(width, dtype=torch.float64)
    assert float(error.mean(0).abs().max()) < 6 * math.sqrt(1 / columns / seeds)
    off = ~torch.eye(width, dtype=torch.bool)
    # Two columns share a block, where they are orthogonal, with probability (m - 1) / (D - 1).
    wanted = (1 - (columns - 1) / (width - 1)) / columns
    assert float(error[:, off].square().mean()) == pytest.approx(wanted, rel=0.02)
    assert_close(error.diagonal(dim1=1, dim2=2), torch.zeros(seeds, width, dtype=torch.float64))


def test_only_more_than_4096_columns_are_sketched() -> None:
    assert sketch_for(WIDEST) is None
    sketch = sketch_for(WIDEST + 1)
    assert sketch is not None
    assert sketch.size == (COLUMNS, 4097)


def test_known_energy_corrects_the_direction_that_dominates() -> None:
    exact = torch.tensor([1.0] + [1e-3] * 100, dtype=torch.float64).sqrt()
    seen = exact.clone()
    seen[0] *= 1.02
    assert_close(with_energy(seen, exact.square().sum()), exact, rtol=1e-4, atol=0)
    assert_close(with_energy(exact, exact.square().sum()), exact)
    assert not with_energy(torch.zeros(3, dtype=torch.float64), torch.tensor(0.0)).any()


@properties
@given(st.integers(1, 64), st.integers(0, 999), st.floats(0.01, 100))
def test_with_many_columns_or_with_all_of_them_the_estimate_is_the_rank_itself(
    r: int, seed: int, scale: float
) -> None:
    s = gaussian(r, seed=seed).abs().sort(descending=True).values * scale
    assert_close(sketched_effective_rank(s, SketchSize(10**9, 10**15)), effective_rank_of(s), rtol=1e-6, atol=0)
    assert_close(sketched_effective_rank(s, SketchSize(64, 64)), effective_rank_of(s), rtol=1e-6, atol=0)
    padded, size = torch.cat([s, torch.zeros(3, dtype=torch.float64)]), SketchSize(512, 4096)
    assert_close(sketched_effective_rank(padded, size), sketched_effective_rank(s, size), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rows", [3, 40, 64])
def test_the_estimate_is_the_difference_of_two_entropies(rows: int) -> None:
    """Where D >> m: 1 + m (H(p) - H(q)), q the eigenvalues of diag(p) - sqrt(p) sqrt(p)^T / m, if R < m."""
    columns = 64
    p = gaussian(rows).square() + 0.1
    p /= p.sum()
    q = torch.linalg.eigvalsh(p.diag() - torch.outer(p.sqrt(), p.sqrt()) / columns).clamp_min(0)
    entropy = 1 + columns * (torch.special.entr(p).sum() - torch.special.entr(q).sum())
    found = sketched_effective_rank(p.sqrt(), SketchSize(columns, 10**15)).log()
    if rows == columns:  # the flat rest: below u no ridge reaches
        u, slope = 1 / (1 / p).mean(), (1 / p).mean() ** 2 / (1 / p).square().mean()
        entropy += columns * u * (-torch.log1p(-slope) / slope - 1)
    assert_close(found, entropy, rtol=1e-8, atol=0)


def test_an_estimate_is_at_most_the_number_of_directions_and_none_has_no_rank() -> None:
    size, ones = SketchSize(2048, 65_536), torch.ones(300, dtype=torch.float64)
    assert sketched_effective_rank(0 * ones, size).isnan()
    assert float(sketched_effective_rank(ones[:1], size)) == pytest.approx(1, abs=1e-9)
    assert float(sketched_effective_rank(ones, size)) == 300  # a flat spectrum after the sketch is luck


def eigenvalues(kind: str, size: float, n: int = 500) -> Tensor:
    """The eigenvalues of an output: flat, falling as a power, or a mean that holds a share beside a flat rest."""
    j = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "mean":
        return torch.where(j == 1, size, (1 - size) / (n - 1))
    return (j <= size).double() if kind == "flat" else j**-size


@pytest.mark.parametrize("width", [5000, 65_536, pytest.param(262_144, marks=pytest.mark.slow)])
def test_ranks_from_2_to_500_are_estimated_within_three_hundredths(width: int) -> None:
    """Rows are sqrt(l_i) v_i with random float32 v_i: one sketch and one Gram matrix serve all spectra."""
    v = torch.randn(500, width, generator=torch.Generator().manual_seed(2))
    gram = torch.zeros(500, 500, dtype=torch.float64)
    for part in v.split(8192, 1):
        gram.addmm_(part.double(), part.double().T)
    sketch = Sketch.make(width)
    rows, _ = sketch(v)
    sizes = {"flat": (2, 5, 50, 200, 500), "power": (0.3, 0.6, 1, 1.5, 2, 3), "mean": (0.3, 0.5, 0.9)}
    for kind, size in ((kind, size) for kind, several in sizes.items() for size in several):
        scale = eigenvalues(kind, size).sqrt()
        exact = effective_rank_of(torch.linalg.eigvalsh(scale[:, None] * gram * scale).clamp_min(0).sqrt())
        energy = (scale.square() * gram.diagonal()).sum()
        found = sketched_effective_rank(with_energy(singular_values(scale[:, None] * rows), energy), sketch.size)
        assert float(found) == pytest.approx(float(exact), rel=0.03), (kind, size)


def test_one_hot_rows_whose_columns_meet_in_a_sum_are_told_apart() -> None:
    z = torch.zeros(500, 65_536)
    z[torch.arange(500), torch.arange(500) * 128] = 1
    sketch = Sketch.make(65_536)
    rows, _ = sketch(z)
    assert float(sketched_effective_rank(singular_values(rows), sketch.size)) == pytest.approx(500, rel=0.01)


def test_more_directions_than_sketch_columns_are_taken_to_end_flat() -> None:
    columns, r = 64, 100
    s = torch.linalg.svdvals(gaussian(r, columns) / math.sqrt(columns))
    assert float(effective_rank_of(s)) < 55
    assert float(sketched_effective_rank(s, SketchSize(columns, 10**15))) == pytest.approx(r, rel=0.05)
