from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp
from torch import Tensor
from torchvision.transforms import (
    ColorJitter,
    GaussianBlur,
    InterpolationMode,
    RandomResizedCrop,
)
from torchvision.transforms import functional as tv

from rankgap.errors import UserError
from rankgap.views import Parameters, ViewConfig, Views, eval_view
from rankgap.views import random_views as module
from tests.views.image_samples import LEVEL, PLAIN, WHOLE, noise, one_view, parameters, photographs, seeded


def _draw(config: ViewConfig, count: int, height: int = 48, width: int = 64) -> Parameters:
    """(count,) of each parameter."""
    return parameters(Views([config], 32, [0.0], [1.0]), [(height, width)] * count)


def _same_distribution(ours: Tensor, theirs: Sequence[float]) -> bool:
    # Both in float32, or equal fractions would differ.
    return float(ks_2samp(ours.numpy(), np.array(theirs, dtype=np.float32), method="asymp").pvalue) > 0.001


# Distributions


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((48, 64), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((64, 48), (0.2, 0.5), (0.5, 1.5)),
        ((40, 90), (0.4, 0.9), (3 / 4, 4 / 3)),  # few tries fit, many images fall back
    ],
)
def test_crops_are_distributed_as_torchvisions(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = _draw(ViewConfig(scale=scale, ratio=ratio), 10_000, *size)
    image = torch.empty(3, *size)
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(10_000)]
    top, left, height, width = (list(map(float, column)) for column in zip(*theirs, strict=True))
    assert _same_distribution(ours.height * ours.width, [h * w for h, w in zip(height, width, strict=True)])
    assert _same_distribution(ours.width / ours.height, [w / h for h, w in zip(height, width, strict=True)])
    assert _same_distribution(ours.height, height)
    assert _same_distribution(ours.width, width)
    assert _same_distribution(ours.top, top)
    assert _same_distribution(ours.left, left)
    # Given the size, the position is uniform: conditional on the room left, not only on the whole.
    room = [(size[0] - h, t) for h, t in zip(height, top, strict=True) if h < size[0]]
    free = size[0] - ours.height
    assert _same_distribution((ours.top / free)[free > 0], [t / f for f, t in room])


@pytest.mark.parametrize("size", [(11, 100), (100, 11), (7, 50), (33, 5)])
def test_where_no_try_fits_the_crop_is_torchvisions_central_one(size: tuple[int, int]) -> None:
    config = ViewConfig(scale=(0.9, 1.0))
    p = _draw(config, 20, *size)
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), list(config.scale), list(config.ratio))
    for ours, theirs in zip((p.top, p.left, p.height, p.width), expected, strict=True):
        assert (ours == theirs).all()


def test_jitter_and_blur_are_distributed_as_torchvisions() -> None:
    config = ViewConfig(jitter=(0.4, 0.3, 1.2, 0.1), blur_p=0.5, blur_sigma=(0.1, 2.0))
    ours = _draw(config, 8000)
    jitter = ColorJitter(*config.jitter)
    torch.manual_seed(0)
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(6000)
    ]
    on = ours.hue != 0
    for name, column in zip(
        ("brightness", "contrast", "saturation", "hue"), list(zip(*theirs, strict=True))[1:], strict=True
    ):
        drawn = getattr(ours, name)
        assert _same_distribution(drawn[on], column), name
        assert (drawn[~on] == (0 if name == "hue" else 1)).all(), name  # all four are jittered, or none
    assert _same_distribution(ours.sigma, [GaussianBlur.get_params(0.1, 2.0) for _ in range(6000)])


def test_each_event_has_its_probability() -> None:
    config = ViewConfig(
        flip=0.3, jitter_p=0.8, grey_p=0.2, blur_p=0.6, solarize_p=0.1, vertical_flip=0.4, turn=0.6
    )
    p = _draw(config, 20_000)
    for drawn, chance in [
        (p.flip, config.flip),
        (p.hue != 0, config.jitter_p),
        (p.grey, config.grey_p),
        (p.blur, config.blur_p),
        (p.solarize, config.solarize_p),
        (p.vertical_flip, config.vertical_flip),
        *((p.quarters == k, config.turn / 3) for k in (1, 2, 3)),
    ]:
        assert binomtest(int(drawn.sum()), len(drawn), chance).pvalue > 0.01


def test_what_is_drawn_is_independent_across_parameters_and_views() -> None:
    config = ViewConfig(jitter_p=1.0, blur_p=0.5, solarize_p=0.5, scale=(0.2, 0.4), vertical_flip=0.5, turn=0.5)
    sizes = torch.full((20_000,), 64.0)
    p = Views([config, config], 32, [0.0], [1.0]).draw(sizes, sizes, seeded())
    area, ratio = p.height * p.width, p.width / p.height
    y, x = p.top / (64 - p.height), p.left / (64 - p.width)
    rows = torch.cat([area, ratio, y, x, *p[4:]]).double()  # 30 numbers and events, 20,000 draws
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 4.5 / math.sqrt(20_000)


# Geometry


@pytest.mark.parametrize(
    ("interpolation", "stored", "size"),
    [("bilinear", 32, 32), ("bilinear", 48, 96), ("bicubic", 32, 32), ("bicubic", 64, 24), ("bilinear", 100, 17)],
)
def test_pixels_are_those_of_torchvisions_resized_crop(
    interpolation: Literal["bilinear", "bicubic"], stored: int, size: int
) -> None:
    images = noise(24, 3, stored, stored)
    views = one_view(size, flip=0.5, jitter_p=0.0, grey_p=0.0, interpolation=interpolation)
    p = parameters(views, [(stored, stored)] * 24, 5)
    ours = views(images, generator=seeded(5))[0]
    for i, view in enumerate(ours):
        theirs = tv.resized_crop(
            images[i],
            int(p.top[i]),
            int(p.left[i]),
            int(p.height[i]),
            int(p.width[i]),
            [size, size],
            interpolation=InterpolationMode(interpolation),
            antialias=size < stored or interpolation == "bicubic",
        )
        theirs = tv.hflip(theirs) if p.flip[i] else theirs
        assert (view - theirs / 255).abs().max() <= LEVEL  # theirs is rounded to whole levels
    assert 0 < p.flip.sum() < 24


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_of_the_whole_image_is_the_image(interpolation: str) -> None:
    images = noise(5, 3, 32, 32)
    torch.testing.assert_close(
        one_view(32, **WHOLE, interpolation=interpolation)(images)[0], images / 255, atol=2e-7, rtol=0
    )
    mirrored = one_view(32, **{**WHOLE, "flip": 1.0}, interpolation=interpolation)(images)[0]
    torch.testing.assert_close(mirrored, images.flip(-1) / 255, atol=2e-7, rtol=0)


def test_vertical_flips_and_turns_move_the_pixels_of_the_view_without_them() -> None:
    images = noise(64, 3, 20, 31)
    turned = ViewConfig(blur_p=0.5, solarize_p=0.5, vertical_flip=0.5, turn=0.75)
    upright = ViewConfig(blur_p=0.5, solarize_p=0.5)
    views = Views([turned, upright], 24, [0.5] * 3, [0.2] * 3)
    plain = Views([upright, upright], 24, [0.5] * 3, [0.2] * 3)(images, generator=seeded())
    ours = views(images, generator=seeded())
    assert torch.equal(ours[1], plain[1])
    sizes = torch.full((64,), 20.0), torch.full((64,), 31.0)
    p = views.draw(*sizes, seeded())
    seen = set()
    for i, (flipped, quarters) in enumerate(zip(p.vertical_flip[0], p.quarters[0].tolist(), strict=True)):
        wanted = tv.vflip(plain[0, i]) if flipped else plain[0, i]
        assert torch.equal(ours[0, i], torch.rot90(wanted, quarters, (1, 2)))
        seen.add((bool(flipped), quarters))
    assert len(seen) == 8
    always = Views([ViewConfig(vertical_flip=1.0, turn=1.0)], 8, [0.5], [0.5]).draw(*sizes, seeded())
    assert always.vertical_flip.all()
    assert set(always.quarters[0].tolist()) == {1, 2, 3}


def test_without_vertical_flips_and_turns_views_are_what_they_were() -> None:
    # Values of the version that had neither.
    views = Views([ViewConfig(), ViewConfig(blur_p=0.5, solarize_p=0.5)], 16, [0.5] * 3, [0.25] * 3)
    generator = seeded(3)
    out = views(noise(4, 3, 32, 40), generator=generator)
    assert [out[1, 2, 0, 3, 4].item(), out[0, 0, 2, 15, 0].item()] == pytest.approx(
        [-0.8128666281700134, 0.20180544257164001], abs=1e-6
    )
    assert out.double().sum().item() == pytest.approx(-2350.3120840039774, abs=1e-3)
    assert torch.rand(1, generator=generator).item() == pytest.approx(0.9539, abs=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_crops_of_a_squashed_image_are_drawn_in_its_original_pixels(transposed: bool) -> None:
    ramp = torch.arange(64).mul(3).to(torch.uint8)  # 3 levels an original pixel, 6 a stored one
    stored = ramp.view(1, 1, 1, 32, 2).float().mean(-1).to(torch.uint8).expand(200, 1, 32, 32)
    size = (64, 40) if transposed else (40, 64)
    views = one_view(16, channels=1, **PLAIN, interpolation="bilinear")
    p = parameters(views, [size] * 200, 2)
    out = views(stored.mT if transposed else stored, torch.tensor([size] * 200), seeded(2))[0][:, 0]
    start, length, other = (p.top, p.height, p.width) if transposed else (p.left, p.width, p.height)
    expected = 3 * (start[:, None] + length[:, None] * (torch.arange(16) + 0.5) / 16 - 0.5)
    rows = out.mT if transposed else out
    assert (rows * 255 - expected[:, None]).abs()[..., 1:-1].max() < 3  # less than one pixel
    assert (other <= 40).all()
    assert length.max() > 40


def test_the_evaluation_view_of_an_image_of_its_size_is_the_normalised_image() -> None:
    images = noise(4, 3, 32, 32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(eval_view(images, None, 32, mean.tolist(), std.tolist()), expected)


@pytest.mark.parametrize(("shape", "size"), [((48, 48), 20), ((20, 20), 32), ((30, 51), 30), ((64, 40), 16)])
def test_the_evaluation_view_is_torchvisions_resize_of_the_central_square(
    shape: tuple[int, int], size: int
) -> None:
    images = noise(3, 3, *shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = images[..., top : top + side, left : left + side]
    theirs = tv.resize(square, [size, size], InterpolationMode.BICUBIC, antialias=True) / 255
    ours = eval_view(images, None, size, [0.0] * 3, [1.0] * 3)
    assert (ours - theirs).abs().max() <= LEVEL
    same = eval_view(images, torch.tensor([shape] * 3), size, [0.0] * 3, [1.0] * 3)
    assert torch.equal(ours, same)


def test_the_evaluation_view_of_a_squashed_image_has_its_proportions() -> None:
    photos = photographs(4, 96)
    wide = tv.resize(photos, [96, 192], InterpolationMode.BICUBIC, antialias=True)[
        ..., 48:144
    ]  # the central square
    squashed = torch.cat([photos[..., :48], photos[..., 48:]], -1)
    ours = eval_view(squashed, torch.tensor([[96, 192]] * 4), 96, [0.0] * 3, [1.0] * 3)
    assert (ours - wide / 255).abs().mean() < 2 * LEVEL


# The contract


def test_views_are_float32_and_channels_last_and_differ_from_each_other() -> None:
    views = Views([ViewConfig(interpolation="bilinear"), ViewConfig(), ViewConfig()], 24, [0.5] * 3, [0.2] * 3)
    out = views(noise(6, 3, 32, 40), generator=seeded())
    assert out.shape == (3, 6, 3, 24, 24)
    assert out.dtype == torch.float32
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in out)
    assert not torch.equal(out[1], out[2])
    assert not views.state_dict()


def test_views_of_two_interpolations_are_each_the_view_of_its_own() -> None:
    images = noise(6, 3, 32, 32)
    both = Views([ViewConfig(interpolation="bilinear"), ViewConfig()], 24, [0.5] * 3, [0.2] * 3)
    for i, kind in enumerate(["bilinear", "bicubic"]):
        one = Views([ViewConfig(interpolation=kind)] * 2, 24, [0.5] * 3, [0.2] * 3)  # type: ignore[arg-type]
        assert torch.equal(both(images, generator=seeded())[i], one(images, generator=seeded())[i])


def test_views_of_several_sizes_are_each_those_of_views_of_that_size_alone() -> None:
    configs = [ViewConfig(blur_p=0.5), ViewConfig(size=12, solarize_p=0.5), ViewConfig(size=12), ViewConfig()]
    images = noise(6, 3, 32, 40)
    mixed = Views(configs, 24, [0.5] * 3, [0.2] * 3)
    out = mixed(images, generator=seeded())
    assert mixed.sizes == (24, 12, 12, 24)
    assert [tuple(view.shape) for view in out] == [(6, 3, side, side) for side in mixed.sizes]
    for size in (12, 24):
        alike = Views([dataclasses.replace(config, size=size) for config in configs], 99, [0.5] * 3, [0.2] * 3)
        same = alike(images, generator=seeded())
        for v in (v for v, side in enumerate(mixed.sizes) if side == size):
            assert torch.equal(out[v], same[v])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crops_that_were_cut_elsewhere_are_finished_as_if_cut_here(channels: int) -> None:
    whole = {**WHOLE, "flip": 0.5, "jitter_p": 0.8, "grey_p": 0.2}
    configs = [
        ViewConfig(**whole, blur_p=0.5, vertical_flip=0.5, turn=0.75),
        ViewConfig(**whole, solarize_p=0.5, blur_p=0.5),
    ]
    mean, std = [0.5, 0.4, 0.3, 0.2, 0.1][:channels], [0.2, 0.3, 0.4, 0.5, 0.6][:channels]
    views, images = Views(configs, 32, mean, std), noise(16, channels, 32, 32)
    expected = views(images, generator=seeded(3))
    side = torch.full((16,), 32.0)
    drawn = views.draw(side, side, seeded(3))
    torch.testing.assert_close(views.finish([images, images], drawn), expected, atol=2e-5, rtol=0)


def test_crops_that_do_not_fit_the_views_are_refused() -> None:
    views = Views([ViewConfig(), ViewConfig(size=8)], 16, [0.5] * 3, [0.2] * 3)
    drawn = views.draw(torch.full((2,), 20.0), torch.full((2,), 20.0))
    for crops, named in (
        ([noise(2, 3, 16, 16)], "crops of 2 views, got 1"),
        ([noise(2, 3, 16, 16)] * 2, r"uint8 crops \(B, 3, 8, 8\), got torch.uint8 \(2, 3, 16, 16\)"),
        ([noise(2, 3, 16, 16).float(), noise(2, 3, 8, 8)], "got torch.float32"),
    ):
        with pytest.raises(UserError, match=named):
            views.finish(crops, drawn)


def test_randomness_comes_from_the_generator_alone() -> None:
    views, images = one_view(16, blur_p=0.5, solarize_p=0.5), noise(8, 3, 20, 20)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = views(images, generator=seeded(7))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(views(images, generator=seeded(7)), first)
    assert not torch.equal(views(images, generator=seeded(8)), first)
    torch.manual_seed(7)
    assert torch.equal(views(images), first)


def test_autocast_layout_and_block_size_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    views, images = one_view(32, blur_p=0.5, solarize_p=0.5), noise(8, 3, 40, 40)
    expected = views(images, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views(images, generator=seeded()), expected)
        assert eval_view(images, None, 24, [0.5] * 3, [0.2] * 3).dtype == torch.float32
    shuffled = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(views(shuffled, generator=seeded()), expected)
    monkeypatch.setattr(module, "_BLOCK", 3 * 3 * 40 * 40)  # three images at a time, and a rest of two
    torch.testing.assert_close(views(images, generator=seeded()), expected, atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_views_and_is_never_waited_for() -> None:
    config = ViewConfig(
        **{**WHOLE, "grey_p": 1.0}, blur_p=1.0, blur_sigma=(1.0, 1.0), solarize_p=1.0, vertical_flip=1.0
    )
    images = photographs(8, 48)
    views = Views([config, config], 32, [0.5] * 3, [0.2] * 3)
    expected = views(images)
    views, images = views.cuda(), images.cuda()
    views(images)  # libraries are loaded on first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = views(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(ours.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"size": 0}, "size to be from 2 to 8192 pixels"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"flip": 1.5}, "flip"),
        ({"vertical_flip": 1.5}, "vertical_flip"),
        ({"turn": -0.25}, "turn"),
        ({"jitter_p": -0.1}, "jitter_p"),
        ({"grey_p": math.nan}, "grey_p"),
        ({"blur_p": 2.0}, "blur_p"),
        ({"solarize_p": -1.0}, "solarize_p"),
        ({"jitter": (0.4, -0.4, 0.4, 0.1)}, "jitter"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter"),
        ({"interpolation": "bicubical"}, "did you mean 'bicubic'"),
    ],
)
def test_a_config_out_of_range_is_refused_when_built(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ViewConfig(**config)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.zeros(2, 3, 8, 8), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(B, 3, H, W\)"),
    ],
)
def test_images_of_another_kind_are_refused(images: Tensor, named: str) -> None:
    with pytest.raises(UserError, match=named):
        one_view(8)(images)
    with pytest.raises(UserError, match=named):
        eval_view(images, None, 8, [0.5] * 3, [0.2] * 3)


def test_sizes_mean_and_std_that_do_not_match_are_refused() -> None:
    with pytest.raises(UserError, match="sizes"):
        one_view(8)(noise(2, 3, 8, 8), torch.ones(3, 2))
    with pytest.raises(UserError, match="mean and std"):
        Views([ViewConfig()], 8, [0.5] * 3, [0.2])
    with pytest.raises(UserError, match="mean and std"):
        eval_view(noise(2, 1, 8, 8), None, 8, [0.5], [0.0])
    with pytest.raises(UserError, match="size"):
        Views([ViewConfig()], 0, [0.5], [0.2])
