"""What a reading holds, and how it comes back from a run's table."""

from __future__ import annotations

import math

import pytest
import torch

from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.tokens import position_share
from rankgap.watch.reading import Reading, read, readings
from tests.matrices import gaussian


def test_tokens_are_rows_and_images_and_both_branches_have_as_many_of_each() -> None:
    online, target = gaussian(24, 3, 6), gaussian(8, 5, 6, seed=1) + gaussian(1, 5, 6, seed=2)
    found = read(online, target, 7)
    assert (found.step, found.rows, found.images, found.full_rank) == (7, 40, 8, 6)
    rows = online.flatten(0, 1)[torch.arange(40) * 72 // 40]
    images = online[::3]
    assert found.erank_online == pytest.approx(float(effective_rank(rows)))
    assert found.erank_target == pytest.approx(float(effective_rank(target.flatten(0, 1))))
    assert found.image_rank_online == pytest.approx(float(effective_rank(images.mean(1))))
    assert found.image_rank_target == pytest.approx(float(effective_rank(target.mean(1))))
    assert found.position_share_online == pytest.approx(float(position_share(images)))
    assert found.position_share_target == pytest.approx(float(position_share(target)))


def test_assignments_are_measured_where_both_branches_give_distributions() -> None:
    logits, probabilities = gaussian(9, 4), gaussian(9, 4, seed=1).softmax(-1)
    assert read(logits, probabilities, 0).assignment is None
    assert read(probabilities, logits, 0).assignment is None
    found = read(logits.softmax(-1), probabilities, 0)
    entropy = -(probabilities * probabilities.log()).sum(1).mean() / math.log(4)
    assert found.assignment == pytest.approx(float(entropy))


def test_a_table_of_an_earlier_version_has_the_readings_without_what_came_since() -> None:
    nan = math.nan
    old = {"step": [0.0, 10.0], "epoch": [0.0, 0.5], "erank_target": [9.0, 8.0], "spread": [0.5, 0.4]}
    first, second = readings(old)
    assert (first.step, second.step, second.erank_target) == (0, 10, 8.0)
    assert second.rows == 0
    assert second.images is second.image_rank_target is None
    assert math.isnan(second.spread_target)
    continued = {"step": [0.0, 10.0], "rows": [nan, 64.0], "images": [nan, 8.0], "assignment": [nan, 0.5]}
    found = [(each.rows, each.images, each.assignment) for each in readings(continued)]
    assert found == [(0, None, None), (64, 8, 0.5)]
    assert readings({}) == []


def test_a_row_of_a_table_is_the_reading_that_it_was_made_of() -> None:
    made = read(gaussian(8, 3, 6), gaussian(8, 3, 6, seed=1), 20)
    columns = {"step": [20.0]} | {name: [value] for name, value in made.numbers().items()}
    assert readings(columns) == [made]
    assert not read(gaussian(4, 3), gaussian(4, 3) * math.nan, 0).finite
    assert Reading(0, finite=False).rows == 0
