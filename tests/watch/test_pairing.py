from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.watch.pairing import choose, evenly, kinship


def views(count: int, seed: int = 0, rows: int = 20, width: int = 12, noise: float = 0.3) -> list[Tensor]:
    """Views of the same images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, width, generator=generator)
    return [images + noise * torch.randn(rows, width, generator=generator) for _ in range(count)]


def place(view: Tensor | None, among: list[Tensor]) -> int:
    assert view is not None
    return next(i for i, other in enumerate(among) if other.data_ptr() == view.data_ptr())


@pytest.mark.parametrize(
    ("online", "target", "opposite", "same"),
    [  # numbers of views; the places of T and of its own online view
        (2, 2, (1, 1), (0, 0)),
        (2, 1, (0, 0), (0, 0)),
        (1, 2, (1, 0), (0, 0)),
        (4, 2, (1, 1), (0, 0)),
        (1, 1, (0, 0), (0, 0)),
    ],
)
def test_in_a_known_order_views_meet_by_their_places(
    online: int, target: int, opposite: tuple[int, int], same: tuple[int, int]
) -> None:
    mine, theirs = views(online), views(target, seed=1)
    for rule, wanted in (("opposite", opposite), ("same", same)):
        found = choose(mine, theirs, rule)  # type: ignore[arg-type]
        assert found.online is mine[0]
        assert (place(found.target, theirs), place(found.within, mine)) == wanted
        assert not found.why


def networks(seed: int, width: int = 12) -> tuple[nn.Module, nn.Module]:
    """An online branch with a predictor, and a teacher that lags behind its encoder."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
    teacher = copy.deepcopy(encoder)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight) * weight.std(correction=0))
    predictor = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    return nn.Sequential(encoder, predictor), teacher


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("seed", range(8))
def test_calls_in_any_order_are_told_apart(order: tuple[int, ...], seed: int) -> None:
    online, teacher = networks(seed)
    inputs = views(2, seed, rows=64)
    with torch.no_grad():
        p = [online(x) for x in inputs]
        t = [teacher(inputs[i]) for i in order]
    found = choose(p, t, "opposite", ordered=False)
    assert order[place(found.target, t)] == 1  # not the own view of p[0]
    assert place(found.within, p) == 1
    assert order[place(choose(p, t, "same", ordered=False).target, t)] == 0


def test_the_views_of_other_images_are_not_the_opposite_ones() -> None:
    """Two batches in one step, as gradients over several forward passes have them."""
    online, teacher = networks(0)
    inputs = [*views(2, seed=1, rows=64), *views(2, seed=2, rows=64)]
    with torch.no_grad():
        p, t = [online(x) for x in inputs], [teacher(x) for x in reversed(inputs)]
    assert place(choose(p, t, "opposite", ordered=False).target, t) == 2
    assert place(choose(p, t, "same", ordered=False).target, t) == 3


def test_crops_of_another_size_are_passed_over() -> None:
    small, large = [z[:7] for z in views(8)], views(2)
    found = choose([*small, *large], views(2, seed=1), "opposite")
    assert found.online is large[0]
    assert not found.why


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 5))
def test_kinship_ignores_scale_rotation_and_the_mean(rows: int, width: int, seed: int) -> None:
    mine, theirs = views(2, seed, rows, width), views(2, seed + 1, rows, width)
    turned = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    moved = [3 * view @ turned + 2 for view in theirs]
    torch.testing.assert_close(kinship(mine, moved), kinship(mine, theirs), rtol=1e-3, atol=1e-4)


def test_without_a_common_shape_all_views_are_taken_together() -> None:
    online, target = [torch.randn(20, 12)] * 3, [torch.randn(20, 8)] * 2
    found = choose(online, target)
    assert found.online.shape == (60, 12)
    assert found.target.shape == (40, 8)
    assert found.within is None
    assert found.why == "online views are (20, 12), target views (20, 8)"
    tokens = choose([torch.randn(4, 5, 12), torch.randn(4, 7, 12)], target)
    assert tokens.online.shape == (48, 12)
    assert choose([torch.randn(4, 5, 12)] * 2, target).online.shape == (8, 5, 12)


def test_a_function_says_what_meets_what() -> None:
    online, target = views(3), views(2, seed=1)
    found = choose(online, target, lambda p, t: (p[2], t[0]))
    assert (place(found.online, online), place(found.target, target)) == (2, 0)
    with pytest.raises(UserError, match=r"pair gave \(20, 12\) and \(20, 5\): return two views of one shape"):
        choose(online, target, lambda p, t: (p[0], t[0][:, :5]))


@given(st.integers(1, 50), st.integers(1, 60))
def test_rows_are_cut_evenly(rows: int, count: int) -> None:
    kept = evenly(torch.arange(rows)[:, None], count)[:, 0].tolist()
    assert len(kept) == min(rows, count)
    gaps = {b - a for a, b in itertools.pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert kept[0] == 0
