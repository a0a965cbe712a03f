from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from rankgap.model.schedule import (
    Clock,
    is_frozen,
    learning_rate,
    order_seed,
    ramp,
    teacher_momentum,
    views_seed,
    weight_decay,
)


def clock(step: int) -> Clock:
    return Clock(step=step, steps=100, steps_per_epoch=10)


def test_the_rate_warms_up_linearly_then_follows_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate(clock(step), peak=1.0, final=0.2, warmup_epochs=2, warmup_from=0.1)

    assert_close([rate(step) for step in (0, 10, 20, 60, 100)], [0.1, 0.55, 1.0, 0.6, 0.2])
    assert learning_rate(clock(5), peak=0.05, final=0, warmup_epochs=2, warmup_from=0.1) == pytest.approx(0.05)


def test_the_teachers_momentum_goes_from_its_base_to_1_by_a_cosine() -> None:
    assert teacher_momentum(clock(0), 0.9) == pytest.approx(0.9)
    assert teacher_momentum(clock(50), 0.9) == pytest.approx(0.95)
    assert teacher_momentum(clock(100), 0.9) == 1
    assert teacher_momentum(clock(25), 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


def test_a_ramp_goes_from_start_to_end_then_stays() -> None:
    assert [ramp(clock(step), 1.0, 3.0, 5) for step in (0, 25, 50, 90)] == pytest.approx([1, 2, 3, 3])
    assert ramp(clock(0), 1.0, 3.0, 0) == 3


def test_frozen_ends_with_its_epochs() -> None:
    assert [is_frozen(clock(step), 1.5) for step in (0, 14, 15)] == [True, True, False]


def test_seeds_of_neighbours_do_not_meet() -> None:
    orders = {order_seed(seed, epoch) for seed in range(4) for epoch in range(1000)}
    views = {views_seed(seed, step, process) for seed in range(4) for step in range(1000) for process in range(8)}
    assert (len(orders), len(views)) == (4000, 32_000)


def test_any_seed_of_a_run_gives_seeds_that_torch_takes() -> None:
    for seed in (0, 20261125153000, 2**63 - 1):
        for derived in (order_seed(seed, 10**6), views_seed(seed, 10**7, 64)):
            torch.Generator().manual_seed(derived)


def test_weight_decay_goes_from_one_value_to_the_other_by_a_cosine() -> None:
    values = [weight_decay(clock(step), 0.04, 0.4) for step in (0, 25, 50, 100)]
    assert values == pytest.approx([0.04, 0.4 - 0.18 * (1 + math.cos(math.pi / 4)), 0.22, 0.4])
    assert weight_decay(clock(30), 0.1, 0.1) == pytest.approx(0.1)
