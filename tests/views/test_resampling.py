"""Resampling by tiles and by whole matrices, and a blur that is cut off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankgap.views import ViewConfig, Views, resampling
from rankgap.views.resampling import KERNELS, blur_matrix, blur_taps, crop_taps, separable
from tests.views.image_samples import noise, seeded


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(3, 300),
    width=st.integers(3, 300),
    size=st.integers(1, 230),
    kind=st.sampled_from(sorted(KERNELS)),
    seed=st.integers(0, 2**31),
)
def test_tiles_give_what_whole_matrices_give(height: int, width: int, size: int, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, height, width, generator=generator)
    whole = torch.tensor([[height], [width]])
    length = (torch.rand(2, 2, generator=generator) * whole).clamp(min=1)
    start = torch.rand(2, 2, generator=generator) * (whole - length)
    flip = torch.tensor([True, False])
    rows, columns = crop_taps(start, length, (height, width), size, KERNELS[kind], flip)
    found = resampling._by_tiles(images, rows, columns)
    assert found.shape == (2, 3, size, size)
    expected = rows.matrices(height).mT[:, None] @ images @ columns.matrices(width)[:, None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 41, 96, 224])
def test_a_blur_that_is_cut_off_is_the_whole_one_within_a_thousandth(size: int) -> None:
    sigma = torch.tensor([0.1, 0.7, 2.0])
    images = torch.rand(3, 2, size, size, generator=seeded())
    taps = blur_taps(sigma, size, 8)
    assert taps.weights.shape[1] <= 17
    kernel = blur_matrix(sigma, size)
    whole = kernel[:, None] @ images @ kernel.mT[:, None]
    torch.testing.assert_close(separable(images, taps, taps), whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (100, 180, 96)])
def test_large_views_are_those_of_whole_matrices_within_a_thousandth(
    height: int, width: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ViewConfig(blur_p=0.5, solarize_p=0.2, vertical_flip=0.5, turn=0.5)
    views, images = Views([config, config], size, [0.5] * 3, [0.25] * 3), noise(4, 3, height, width)
    found = views(images, generator=seeded(2))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)
    monkeypatch.setattr(resampling, "_TILED", 10**6)
    difference = (views(images, generator=seeded(2)) - found).abs()
    # A value that lies on solarisation's threshold of 0.5 may fall on the other side: 2 * 0.5 / 0.25 apart.
    assert float(difference.flatten().quantile(0.9999)) < 1e-3
