"""Views of a batch of 256 images of 32 px, against the same operations in kornia and in torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from benchmarks.suites.timing import Row, Settings, compared
from rankgap.run.recipes import load_recipe
from rankgap.views import ViewConfig, Views

BATCH, SIZE = 256, 32
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def kornia_views(configs: tuple[ViewConfig, ...]) -> Callable[[Tensor], list[Tensor]]:
    """The recipe's operations in kornia, one pipeline for each view; images are floats in [0, 1]."""
    import kornia.augmentation as K

    def one(c: ViewConfig) -> Any:
        brightness, contrast, saturation, hue = c.jitter
        steps: list[Any] = [
            K.RandomResizedCrop((SIZE, SIZE), scale=c.scale, ratio=c.ratio, resample="bicubic"),
            K.RandomHorizontalFlip(p=c.flip),
            K.ColorJitter(brightness, contrast, saturation, hue, p=c.jitter_p),
            K.RandomGrayscale(p=c.grey_p),
        ]
        if c.blur_p > 0:
            steps.append(K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=c.blur_p))
        if c.solarize_p > 0:
            steps.append(K.RandomSolarize(0.0, 0.0, p=c.solarize_p))
        steps.append(K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
        return K.AugmentationSequential(*steps, data_keys=["input"])

    pipelines = [one(c) for c in configs]
    return lambda images: [pipeline(images) for pipeline in pipelines]


def torchvision_view(c: ViewConfig, size: int, *, blur: int) -> Any:
    """A recipe's view of a PIL image in torchvision v2; `blur` is the side of its kernel in pixels."""
    steps: list[Any] = [
        v2.RandomResizedCrop(size, scale=c.scale, ratio=c.ratio, interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(c.flip),
        v2.RandomApply([v2.ColorJitter(*c.jitter)], c.jitter_p),
        v2.RandomGrayscale(c.grey_p),
    ]
    if c.blur_p > 0:
        steps.append(v2.RandomApply([v2.GaussianBlur(blur, (0.1, 2.0))], c.blur_p))
    if c.solarize_p > 0:
        steps.append(v2.RandomSolarize(128, c.solarize_p))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose(steps)


class Pictures(Dataset[Any]):
    """PIL images with the recipe's operations in torchvision v2, as in a usual training loop."""

    def __init__(self, images: Tensor, configs: tuple[ViewConfig, ...]) -> None:
        self.images = [v2.functional.to_pil_image(image) for image in images]
        self.views = [torchvision_view(c, SIZE, blur=3) for c in configs]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [view(self.images[index]) for view in self.views]


def measure(settings: Settings) -> list[Row]:
    """Measure SimSiam's recipe, and BYOL's for ImageNet, which blurs and solarises."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8 * BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    rows = []
    for name, data, bar in (("simsiam", "cifar", 8.0), ("byol", "imagenet100", 5.0)):
        configs = load_recipe(data, name).views
        ours = Views(configs, SIZE, MEAN, STD)
        pictures, cores = Pictures(images, configs), os.cpu_count() or 1
        loader = DataLoader(pictures, BATCH, num_workers=cores, persistent_workers=True)
        others: dict[str, Callable[[], object]] = {
            f"torchvision v2 on PIL, {cores} workers": partial(list, loader)
        }
        if settings.peers:
            others["kornia"] = partial(_each, kornia_views(configs), images.float() / 255)
        what = (
            f"{len(configs)} views of {len(images):,} images by {name}'s {data} recipe, {SIZE} px, batch {BATCH}"
        )
        rows += [
            compared(what, against, partial(_each, ours, images), theirs, bar=bar, repeats=settings.repeats)
            for against, theirs in others.items()
        ]
    return rows


def _each(views: Callable[[Tensor], object], images: Tensor) -> None:
    for batch in images.split(BATCH):
        views(batch)
