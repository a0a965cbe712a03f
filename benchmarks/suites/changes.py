"""The effect of each choice in the hot path: the same work with it and without it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankgap as rg
from benchmarks.suites.step import CASES, bare_step, our_side
from benchmarks.suites.timing import Row, Settings, compared
from rankgap.filters.gains import Gain
from rankgap.filters.spectral import spectral_filter
from rankgap.model.backbones import build_encoder
from rankgap.model.mlp import per_view
from rankgap.model.schedule import Clock
from rankgap.run.feed import EpochBatches
from rankgap.run.optimizer import build_optimizer, parameter_groups
from rankgap.run.work import Work
from rankgap.views import ViewConfig, Views, resampling

Pair = tuple[Callable[[], object], Callable[[], object]]  # the work with the choice, and without it


def steps() -> dict[str, Pair]:
    """The step of SimSiam with `resnet_tiny` at batch 256: precision, memory format, optimiser."""
    module, data, _ = our_side(CASES[0], rg.design("simsiam"))
    other, _, _ = our_side(CASES[0], rg.design("simsiam"))
    other.model.to(memory_format=torch.contiguous_format)
    images = data.images.batch(range(CASES[0].batch)).images
    fused = build_optimizer(module.model, module.optimizer)
    loop = torch.optim.SGD(parameter_groups(module.model, module.optimizer), lr=0.06, momentum=0.9, foreach=False)

    def contiguous(views: Tensor) -> Tensor:
        return views.contiguous(memory_format=torch.contiguous_format)

    ours = bare_step(module, images, fused)
    other_optimizer = build_optimizer(other.model, other.optimizer)
    return {
        "bf16 | float32": (ours, bare_step(module, images, fused, bf16=False)),
        "channels-last | contiguous": (
            ours,
            bare_step(other, images, other_optimizer, layout=contiguous),
        ),
        "fused SGD, its step alone | a loop over parameters": (fused.step, loop.step),
    }


def teacher() -> Pair:
    """BYOL's EMA of a ResNet-18."""
    model = rg.build("byol", backbone="resnet18")
    clock = Clock(step=1, steps=100, steps_per_epoch=10)
    assert model.teacher is not None
    pairs = list(zip(model.teacher.parameters(), model.online.parameters(), strict=True))

    @torch.no_grad()
    def loop() -> None:
        weight = 1 - model.momentum_at(clock)
        for mine, theirs in pairs:
            mine.lerp_(theirs, weight)

    return lambda: model.update_teacher(clock), loop


def together() -> Pair:
    """Two views through a transformer, which has no batch norm, forward and backward in bf16."""
    encoder = build_encoder("vit_tiny_patch16_224", size=32)
    views = torch.randn(2, 256, 3, 32, 32)

    def once(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        encoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = forward(encoder, views)
        out.float().square().sum().backward()

    return (
        lambda: once(per_view),
        lambda: once(lambda module, each: torch.stack([module(view) for view in each])),
    )


def even_power() -> Pair:
    """power:2, which is Z (Z^T Z) / N, against the decomposition that other gains need; N 256, D 2048."""
    z = torch.randn(256, 2048) @ torch.diag(torch.logspace(0, -2, 2048))
    square = Gain("square", torch.square, is_low_pass=True, is_high_pass=False)
    return lambda: spectral_filter(z, "power:2"), lambda: spectral_filter(z, square)


def batches() -> Pair:
    """An epoch of 50,000 images in memory, by index, against workers that collate single images."""
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    _, data, _ = our_side(CASES[0], rg.design("simsiam"))
    held = type(data.images)("random", images, None, (0.5,) * 3, (0.25,) * 3)
    work = Work(images=len(images), batch_size=256, epochs=1, features=128)
    loader = DataLoader(TensorDataset(images), 256, shuffle=True, num_workers=os.cpu_count() or 1)

    def ours() -> None:
        epoch = EpochBatches(held, work, seed=0, step=0)
        for i in range(len(epoch)):
            epoch[i]

    return ours, lambda: list(loader)


def tiles() -> Pair:
    """Two views of 224 px of 32 images, both blurred: by tiles, and by whole matrices as smaller views are."""
    images = torch.randint(0, 256, (32, 3, 256, 256), dtype=torch.uint8)
    views = Views([ViewConfig(blur_p=1.0)] * 2, 224, [0.5] * 3, [0.25] * 3)

    def whole() -> None:
        smallest, resampling._TILED = resampling._TILED, 10**6
        try:
            views(images)
        finally:
            resampling._TILED = smallest

    return lambda: views(images), whole


def measure(settings: Settings) -> list[Row]:
    """One row for each choice; the ratio is the time without it over the time with it."""
    torch.manual_seed(0)
    pairs = {f"SimSiam step, resnet_tiny, batch 256: {name}": pair for name, pair in steps().items()} | {
        "EMA of a ResNet-18: torch._foreach | a loop over parameters": teacher(),
        "two views, ViT-tiny, 32 px, batch 256: one forward | two": together(),
        "two views of 224 px, blurred, on a CPU: by tiles | by whole matrices": tiles(),
        "filter power:2, N 256, D 2048: products | decomposition": even_power(),
        "an epoch of 50,000 images from memory: by index | workers that collate": batches(),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        what, _, against = name.partition(" | ")
        bar = 2.0 if "224 px" in name else 1.0
        rows.append(compared(what, against, ours, theirs, bar=bar, repeats=settings.repeats))
    return rows
