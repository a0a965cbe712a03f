"""Batches of views from JPEG photographs of 500 x 375, decoded by two worker processes.

Our workers deliver crops, and leave colours, blur and normalisation to the device. torchvision's do all of that on
the CPU. Two rows tell the parts apart: crops alone on both sides, and everything on the CPU on both sides.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from benchmarks.suites.timing import Row, Settings, compared
from benchmarks.suites.views import MEAN, STD, torchvision_view
from rankgap.data import load_data
from rankgap.data.batch_loader import BatchLoader
from rankgap.data.splits import Statistics
from rankgap.run.feed import EpochBatches
from rankgap.run.recipes import load_recipe
from rankgap.run.work import Work
from rankgap.views import ViewConfig, Views

PHOTOS, BATCH, WORKERS = 512, 64, 2
SIZE, LOCAL = 224, 96
BLUR = 23  # side of the kernel of the published recipes, in pixels


def write_photos(folder: Path, count: int = PHOTOS) -> list[Path]:
    """Random parts of scikit-learn's two photographs, as JPEG of 500 x 375."""
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    paths = [folder / f"{k:04}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        picture = pictures[k % len(pictures)]
        width = random.uniform(0.5, 0.85) * picture.width
        left, top = random.uniform(0, 1, 2) * (picture.width - width, picture.height - 0.75 * width)
        box = (left, top, left + width, top + 0.75 * width)
        picture.resize((500, 375), Image.Resampling.LANCZOS, box=box).save(path, quality=90)
    return paths


class Photos(Dataset[Any]):
    """Photographs, opened as PIL images and passed to functions."""

    def __init__(self, paths: list[Path], views: list[Callable[[Image.Image], Any]]) -> None:
        self.paths, self.views = paths, views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Any]:
        with Image.open(self.paths[index]) as picture:
            return [view(picture) for view in self.views]


def multi_crop(config: ViewConfig) -> tuple[ViewConfig, ...]:
    """Two views of 224 px and eight of 96, cropped as DINO's, with the colours of one view."""
    whole = dataclasses.replace(config, scale=(0.4, 1.0))
    local = dataclasses.replace(config, scale=(0.05, 0.4), size=LOCAL, target=False)
    return (whole,) * 2 + (local,) * 8


def measure(settings: Settings) -> list[Row]:
    """Measure BYOL's ImageNet views, and multi-crop with the colours of its second view."""
    with tempfile.TemporaryDirectory() as place:
        paths = write_photos(Path(place))
        images, _ = load_data(f"folder:{place}", size=SIZE, statistics=Statistics(MEAN, STD))
        work = Work(images=PHOTOS, batch_size=BATCH, epochs=1, features=512)
        bare = DataLoader(Photos(paths, [_side]), BATCH, num_workers=WORKERS)
        published = load_recipe("imagenet100", "byol").views
        cases = {"BYOL's ImageNet views": published, "multi-crop, 2 x 224 and 8 x 96": multi_crop(published[1])}
        rows = []
        for name, configs in cases.items():
            views = Views(configs, SIZE, MEAN, STD)
            batches = EpochBatches(images, work, seed=0, step=0, views=views)
            crops = [dataclasses.replace(c, jitter_p=0, grey_p=0, blur_p=0, solarize_p=0) for c in configs]
            others = [("torchvision v2 on PIL, the same crops and colours", _loader(paths, configs), 4.0)]
            others += [("torchvision v2 on PIL, the same crops only", _loader(paths, crops), 1.0)]
            if configs is published:
                others.append(("decoding to arrays with Pillow, nothing else", bare, 0.5))
            what, ours = f"{name} of {PHOTOS} photographs", BatchLoader(batches, workers=WORKERS)
            ready = f"{what}, {WORKERS} workers, batches of {BATCH} ready for the device"
            sides = [(ready, against, partial(_drain, ours), loader, bar) for against, loader, bar in others]
            finished = f"{what}, colours and blur on the CPU too, by the process that trains"
            sides.append((finished, others[0][0], partial(_finish, views, ours), others[0][1], 2.0))
            rows += [
                compared(
                    title,
                    f"{against}, {WORKERS} workers",
                    run,
                    partial(_drain, loader),
                    bar=bar,
                    repeats=settings.repeats,
                )
                for title, against, run, loader, bar in sides
            ]
    return rows


def _finish(views: Views, loader: BatchLoader) -> None:
    for batch in loader:
        views.finish(batch.crops, batch.parameters)


def _loader(paths: list[Path], configs: Sequence[ViewConfig]) -> DataLoader[Any]:
    views = [torchvision_view(config, config.size or SIZE, blur=BLUR) for config in configs]
    return DataLoader(Photos(paths, views), BATCH, num_workers=WORKERS)


def _side(image: Image.Image) -> int:
    return len(np.asarray(image))


def _drain(loader: DataLoader[Any]) -> None:
    for _ in loader:
        pass
