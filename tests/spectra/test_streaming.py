from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.pair import eigenspace_alignment, measured_filter, transfer
from rankgap.spectra.streaming import EffectiveRank, PairSpectra
from tests.matrices import gaussian
from tests.processes import needs_distributed, run_on_processes


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.integers(0, 999), st.booleans())
def test_batches_add_up_to_the_rank_of_all_rows(n: int, d: int, part: int, seed: int, center: bool) -> None:
    z = gaussian(n, d, seed=seed) + 0.5
    if center and n == 1:
        return
    metric = EffectiveRank(d, center=center)
    for rows in z.split(part):
        metric.update(rows)
    assert_close(metric.compute(), effective_rank(z, center=center), rtol=1e-6, atol=0)


def test_metrics_merge() -> None:
    z = gaussian(30, 6)
    first, second = EffectiveRank(6, of="features"), EffectiveRank(6, of="features")
    first.update(z[:10])
    second.update(z[10:])
    first.merge_state(second)
    assert_close(first.compute(), effective_rank(z, of="features"))


def test_six_decades_at_2048_columns_hold_to_a_thousandth() -> None:
    """Z = U diag(s) V^T is built from its singular values, so that no SVD is needed to know them."""
    n, d = 4096, 2048
    u, _ = torch.linalg.qr(gaussian(n, d))
    v, _ = torch.linalg.qr(gaussian(d, d, seed=1))
    s = torch.logspace(0, -6, d, dtype=torch.float64)
    z = (u * s) @ v.T
    metric = EffectiveRank(d, of="features")
    for rows in z.split(1024):
        metric.update(rows)
    assert float(((metric.spectrum() - s) / s).abs().max()) < 1e-3
    p = s / s.sum()
    assert float(metric.compute()) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-3)


@pytest.mark.parametrize("shape", [(40, 8), (6, 20)])
def test_a_pair_is_measured_as_in_one_batch(shape: tuple[int, int]) -> None:
    target = gaussian(*shape)
    online = target * torch.linspace(1, 2, shape[1], dtype=torch.float64) + 0.1 * gaussian(*shape, seed=3)
    metric = PairSpectra(shape[1])
    for p, t in zip(online.split(5), target.split(5), strict=True):
        metric.update(p, t)
    found = metric.compute()
    s, gains = measured_filter(online, target)
    assert_close(found.spectrum_target[: len(s)], s, rtol=1e-7, atol=0)
    assert_close(found.measured_filter, gains, rtol=1e-6, atol=0)
    assert_close(found.transfer, transfer(online, target)[1], rtol=1e-6, atol=1e-9)
    assert_close(found.eigenspace_alignment, eigenspace_alignment(online, target), rtol=1e-6, atol=1e-9)
    assert_close(found.spectrum_online, torch.linalg.svdvals(online), rtol=1e-7, atol=1e-9)


def test_a_pair_of_one_column_keeps_its_columns_and_a_metric_can_be_copied() -> None:
    metric = PairSpectra(1)
    metric.update(torch.full((3, 1), 2.0), torch.ones(3, 1))
    assert metric.compute().transfer.tolist() == pytest.approx([2])
    copied = pickle.loads(pickle.dumps(metric))
    metric.update(torch.zeros(1, 1), torch.ones(1, 1))
    assert (metric.compute().rows, copied.compute().rows) == (4, 3)
    assert metric.compute().transfer.tolist() == pytest.approx([1.5])
    first, second = PairSpectra(2), PairSpectra(2)
    first.update(torch.eye(2), torch.eye(2))
    second.update(torch.eye(2), torch.eye(2))
    first.merge_state(second)
    assert first.compute().rows == 4
    assert first(torch.eye(2), torch.eye(2)).rows == 2
    assert first.compute().rows == 6


def test_a_wide_pair_is_sketched_and_says_so() -> None:
    z = (gaussian(30, 3) @ gaussian(3, 5000, seed=1)).float()
    metric = pickle.loads(pickle.dumps(PairSpectra(5000)))
    for rows in z.split(10):
        metric.update(rows, rows)
    found = metric.compute()
    assert found.sketch_online == found.sketch_target == (2048, 5000)
    assert_close(found.erank_online, effective_rank(z), rtol=0.03, atol=0)
    with pytest.raises(UserError, match=r"expects a batch \(N, 5000\), got \(3, 2048\)"):
        metric.update(torch.ones(3, 2048), torch.ones(3, 2048))


def test_a_batch_that_cannot_be_added_is_named() -> None:
    with pytest.raises(UserError, match=r"expects a batch \(N, 4\), got \(3, 5\)"):
        EffectiveRank(4).update(torch.zeros(3, 5))
    with pytest.raises(UserError, match="1 of 12 values are not finite"):
        EffectiveRank(4).update(torch.cat([torch.zeros(11), torch.tensor([math.nan])]).view(3, 4))
    with pytest.raises(UserError, match="row by row"):
        PairSpectra(4).update(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(UserError, match="no batch has been added"), pytest.warns(UserWarning, match="before"):
        EffectiveRank(4).compute()
    zero = EffectiveRank(4)
    zero.update(torch.zeros(3, 4))
    with pytest.raises(UserError, match="all values are zero"):
        zero.compute()


def on_process(process: int) -> None:
    online, target = gaussian(24, 6), gaussian(24, 6, seed=1)
    mine = slice(12 * process, 12 * process + 12)
    metric = PairSpectra(6)
    metric.update(online[mine], target[mine])
    found = metric.compute()
    assert_close(found.spectrum_online, torch.linalg.svdvals(online), rtol=1e-7, atol=1e-9)
    assert_close(found.measured_filter, measured_filter(online, target)[1], rtol=1e-6, atol=0)
    assert_close(found.transfer, transfer(online, target)[1], rtol=1e-6, atol=1e-9)


@needs_distributed
def test_processes_of_a_distributed_run_add_up(tmp_path: Path) -> None:
    run_on_processes(on_process, tmp_path)
