from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from rankgap.views import Parameters, ViewConfig, Views
from tests.views.image_samples import WHOLE, noise, one_view, parameters, photographs, seeded


def _jittered(images: Tensor, seed: int = 3, **config: Any) -> tuple[Tensor, Parameters]:
    """Whole images through one view's colours, and what was drawn."""
    side = images.shape[-1]
    views = one_view(side, images.shape[1], **{**WHOLE, **config})
    p = parameters(views, [(side, side)] * len(images), seed)
    return views(images, generator=seeded(seed))[0], p


@pytest.mark.parametrize(("name", "place"), [("brightness", 0), ("contrast", 1), ("saturation", 2)])
def test_one_colour_operation_is_torchvisions(name: str, place: int) -> None:
    images = noise(16, 3, 16, 16) // 4 + 80  # mid-tones, which nothing clamps
    jitter = [0.0] * 4
    jitter[place] = 0.5
    ours, p = _jittered(images, jitter=tuple(jitter), jitter_p=0.8)
    adjust = getattr(tv, f"adjust_{name}")
    for view, image, factor in zip(ours, images / 255, getattr(p, name), strict=True):
        torch.testing.assert_close(
            view, adjust(image, float(factor)), atol=3e-4, rtol=0
        )  # their luma has 4 digits


def test_grey_is_torchvisions_luma_whatever_the_saturation() -> None:
    images = noise(6, 3, 8, 8)
    ours, _ = _jittered(images, grey_p=1.0, jitter=(0.0, 0.0, 0.9, 0.0), jitter_p=1.0)
    torch.testing.assert_close(ours, tv.rgb_to_grayscale(images / 255, 3), atol=3e-4, rtol=0)


def test_contrast_keeps_the_mean_grey_of_the_crop_not_of_the_image() -> None:
    images = torch.full((64, 3, 32, 32), 40, dtype=torch.uint8)
    images[..., 16:] = 200
    views = one_view(16, scale=(0.2, 0.5), flip=0.0, jitter=(0.0, 0.5, 0.0, 0.0), jitter_p=1.0, grey_p=0.0)
    unchanged = one_view(16, scale=(0.2, 0.5), flip=0.0, jitter=(0.0, 0.0, 0.0, 0.0), jitter_p=1.0, grey_p=0.0)
    before, after = unchanged(images, generator=seeded()), views(images, generator=seeded())
    unclamped = (after.amax((0, 2, 3, 4)) < 1) & (after.amin((0, 2, 3, 4)) > 0)
    assert unclamped.sum() > 20
    kept = (before - after).mean((0, 2, 3, 4))[unclamped]
    assert kept.abs().max() < 1e-5
    assert not torch.equal(before, after)


def test_hue_differs_from_torchvisions_by_less_than_0_02_on_photographs() -> None:
    photos = photographs(48, 32)
    ours, p = _jittered(photos, jitter=(0.0, 0.0, 0.0, 0.1), jitter_p=1.0)
    theirs = torch.stack([tv.adjust_hue(x, float(h)) for x, h in zip(photos / 255, p.hue, strict=True)])
    difference = (ours - theirs).abs().mean()
    assert difference < 0.02
    assert difference < 0.9 * (photos / 255 - theirs).abs().mean()  # nearer than no shift at all
    opposite = torch.stack([tv.adjust_hue(x, -float(h)) for x, h in zip(photos / 255, p.hue, strict=True)])
    assert difference < 0.5 * (ours - opposite).abs().mean()


def test_all_jitter_differs_from_torchvisions_shuffled_and_clamped_one_by_less_than_0_03() -> None:
    photos = photographs(200, 32)
    ours, p = _jittered(photos, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0)
    rng = np.random.default_rng(0)
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    difference = []
    for i, view in enumerate(ours):
        theirs = photos[i]  # uint8: clamped and rounded after each operation
        for k in rng.permutation(4):
            theirs = operations[k](theirs, float(p[4 + k][i]))
        difference.append(view - theirs / 255)
    assert torch.stack(difference).abs().mean() < 0.03
    assert torch.stack(difference).mean().abs() < 0.01


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channel_counts_take_brightness_and_contrast_alone(channels: int) -> None:
    images = noise(12, channels, 8, 8) // 4 + 90
    ours, p = _jittered(images, jitter=(0.3, 0.4, 0.8, 0.5), jitter_p=0.7, grey_p=0.5)
    x = images / 255 * p.brightness.view(-1, 1, 1, 1)
    expected = x.mean((1, 2, 3), keepdim=True).lerp(x, p.contrast.view(-1, 1, 1, 1))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_normalisation_follows_everything_else() -> None:
    config = ViewConfig(blur_p=0.5, solarize_p=0.5, jitter=(0.8, 0.8, 0.8, 0.2))
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    images = photographs(16, 40)
    plain = Views([config], 32, [0.0] * 3, [1.0] * 3)(images, generator=seeded())
    normalised = Views([config], 32, mean, std)(images, generator=seeded())
    back = normalised * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(back, plain, atol=2e-6, rtol=0)
    assert plain.min() >= -1e-6
    assert plain.max() <= 1 + 1e-6


def test_blur_is_torchvisions_on_the_images_drawn_and_leaves_the_others() -> None:
    images = noise(24, 3, 32, 32)
    ours, p = _jittered(images, blur_p=0.5, blur_sigma=(0.1, 2.0))
    assert 0 < p.blur.sum() < 24
    for view, image, drawn, sigma in zip(ours, images / 255, p.blur, p.sigma, strict=True):
        expected = tv.gaussian_blur(image, [25, 25], [float(sigma)] * 2) if drawn else image
        torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)


def test_solarisation_is_torchvisions_on_the_images_drawn_and_leaves_the_others() -> None:
    images = noise(24, 3, 16, 16)
    ours, p = _jittered(images, solarize_p=0.5)
    assert 0 < p.solarize.sum() < 24
    for view, image, drawn in zip(ours, images, p.solarize, strict=True):
        expected = tv.solarize(image, 128) if drawn else image
        torch.testing.assert_close(view, expected / 255, atol=1e-6, rtol=0)


def test_a_batch_of_which_no_image_is_drawn_is_left_as_it_is() -> None:
    images = noise(4, 3, 16, 16)
    ours, _ = _jittered(images, blur_p=1e-9, solarize_p=1e-9)
    torch.testing.assert_close(ours, images / 255, atol=1e-6, rtol=0)
