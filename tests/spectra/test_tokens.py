from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankgap.spectra.tokens import between_image_share, image_means, position_share
from tests.matrices import gaussian


def sums_of_squares(z: Tensor) -> tuple[float, float, float]:
    """The sums of squares of a two-way analysis of variance, written out: images, positions, all tokens."""
    images, positions, _ = z.shape
    grand = sum(z[b, t] for b in range(images) for t in range(positions)) / (images * positions)
    image = sum(positions * float((z[b].mean(0) - grand).square().sum()) for b in range(images))
    position = sum(images * float((z[:, t].mean(0) - grand).square().sum()) for t in range(positions))
    whole = sum(float((z[b, t] - grand).square().sum()) for b in range(images) for t in range(positions))
    return image, position, whole


def test_the_shares_are_those_of_a_two_way_analysis_of_variance() -> None:
    z = gaussian(7, 5, 3) + 2 * gaussian(7, 1, 3, seed=1) + gaussian(1, 5, 3, seed=2) + 4
    image, position, whole = sums_of_squares(z)
    assert float(between_image_share(z)) == pytest.approx(image / whole, rel=1e-12)
    assert float(position_share(z)) == pytest.approx(position / whole, rel=1e-12)
    assert_close(image_means(z), torch.stack([torch.stack(list(z[b])).sum(0) / 5 for b in range(7)]))


def test_images_and_positions_that_only_add_up_share_all_the_variance() -> None:
    z = gaussian(6, 1, 4) + gaussian(1, 9, 4, seed=1)
    assert float(between_image_share(z) + position_share(z)) == pytest.approx(1, abs=1e-12)
    assert float(between_image_share(gaussian(6, 9, 4)) + position_share(gaussian(6, 9, 4))) < 1


def test_outputs_that_depend_on_one_of_the_two_alone() -> None:
    position = gaussian(1, 9, 4).expand(6, 9, 4)
    assert float(position_share(position)) == pytest.approx(1, abs=1e-12)
    assert float(between_image_share(position)) == pytest.approx(0, abs=1e-12)
    image = gaussian(6, 1, 4).expand(6, 9, 4)
    assert float(position_share(image)) == pytest.approx(0, abs=1e-12)
    assert float(between_image_share(image)) == pytest.approx(1, abs=1e-12)
    assert float(between_image_share(gaussian(6, 1, 4))) == pytest.approx(1, abs=1e-12)  # one token


def test_noise_has_one_over_the_number_of_tokens_in_a_mean() -> None:
    z = gaussian(40, 25, 64)
    assert float(position_share(z)) == pytest.approx(1 / 40, rel=0.1)
    assert float(between_image_share(z)) == pytest.approx(1 / 25, rel=0.1)


@pytest.mark.parametrize("share", [position_share, between_image_share])
def test_a_share_knows_no_scale_no_origin_and_no_axes(share: Callable[[Tensor], Tensor]) -> None:
    z = gaussian(8, 6, 5) + gaussian(8, 1, 5, seed=1)
    turned = z @ torch.linalg.qr(gaussian(5, 5, seed=2))[0]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for other in (1e6 * z, z - 7, turned, z[order], z[:, [3, 0, 5, 1, 2, 4]]):
        assert float(share(other)) == pytest.approx(float(share(z)), rel=1e-9)
    # A mean far from the origin costs no digits.
    assert float(share(z + 1e6)) == pytest.approx(float(share(z)), rel=1e-6)


def test_half_precision_and_gradients() -> None:
    z = gaussian(8, 6, 5).bfloat16().requires_grad_()
    for found in (position_share(z), between_image_share(z), image_means(z)):
        assert found.dtype == torch.float64
        assert not found.requires_grad
    assert_close(position_share(z), position_share(z.double()))


def test_equal_tokens_have_no_share() -> None:
    assert math.isnan(float(position_share(torch.ones(3, 4, 2))))
    assert math.isnan(float(between_image_share(torch.ones(3, 4, 2))))
