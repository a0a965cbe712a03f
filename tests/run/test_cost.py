"""The estimated time of a run with another size or backbone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankgap.run.cost import cheaper, flops


def plan(backbone: str, size: int) -> Any:
    return SimpleNamespace(backbone=backbone, size=size, train=SimpleNamespace(channels=3))


def test_the_count_is_that_of_the_convolutions_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    small, large = (flops("resnet_tiny", channels=3, size=size) for size in (32, 64))
    assert torch.equal(torch.get_rng_state(), before)
    assert large == pytest.approx(4 * small)
    # By hand, in multiplications: kernel area x channels in and out x positions, two operations each.
    stages = 9 * (3 * 16 + 2 * 16 * 16) * 32**2
    for width, side in ((32, 16), (64, 8), (128, 4)):
        stages += (9 * (width // 2 * width + width * width) + width // 2 * width) * side**2
    assert small == 2 * stages


def test_the_largest_size_within_the_limit_is_named() -> None:
    found = cheaper(plan("resnet_tiny", 224), 4 * 3600.0, 3600.0)
    assert found == {"--size 96": pytest.approx(4 * 3600 * (96 / 224) ** 2, rel=0.01)}
    assert list(cheaper(plan("resnet_tiny", 224), 90 * 3600.0, 3600.0)) == ["--size 64"]  # none is within it
    assert cheaper(plan("resnet_tiny", 32), 4 * 3600.0, 3600.0) == {}


def test_a_smaller_backbone_is_named_beside_a_smaller_size() -> None:
    found = cheaper(plan("resnet18", 128), 20 * 3600.0, 3600.0)
    # Below 64 px a ResNet gets a stem that costs more.
    assert list(found) == ["--size 64", "--backbone resnet_tiny", "--size 32 --backbone resnet_tiny"]
    assert min(found, key=lambda flags: found[flags]) == "--size 32 --backbone resnet_tiny"
