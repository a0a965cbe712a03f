"""The images of the runs: balanced classes, a long tail of classes, and mosaics whose parts have labels.

Shapes: N images, M mosaics, C channels, S side of an image in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankgap.data import ImageSet

CLASSES = 10
TEST = 2_000  # test images


def class_sizes(images: int, factor: float) -> list[int]:
    """Images of each class where sizes fall evenly in logarithms: the first class has `factor` times the last."""
    shares = factor ** -(np.arange(CLASSES) / (CLASSES - 1))
    sizes = np.floor(images * shares / shares.sum()).astype(int)
    sizes[0] += images - sizes.sum()
    return [int(size) for size in sizes]


def write_images(found: Any, folder: Path, images: int, factor: float, seed: int) -> str:
    """Write a subset of the training images, and the first test images, as Parquet; returns what `--data` takes.

    Args:
        found: the data set, with the splits train and test.
        folder: where to write, if nothing is there yet.
        images: of the training set.
        factor: the largest class over the smallest; 1 is balanced.
        seed: of the choice of images, and of which classes are large.
    """
    if not (folder / "test.parquet").is_file():  # the last one to be written
        random = np.random.default_rng(seed)
        labels = np.array(found["train"]["label"])
        chosen = [
            random.permutation(np.flatnonzero(labels == label))[:size]
            for label, size in zip(random.permutation(CLASSES), class_sizes(images, factor), strict=True)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        found["train"].select(np.sort(np.concatenate(chosen))).to_parquet(folder / "train.parquet")
        found["test"].select(range(min(TEST, len(found["test"])))).to_parquet(folder / "test.parquet")
    return f"hf:{folder.resolve()}"


def mosaics(images: ImageSet) -> tuple[ImageSet, Tensor]:
    """Mosaics of 2 x 2 images, in the set's order, and the classes of their parts.

    Returns:
        M = N // 4 images of side 2 S; (M, 2, 2) int64.
    """
    count = len(images) // 4
    whole = images.batch(range(4 * count))
    assert whole.labels is not None
    channels, side = images.channels, images.size
    parts = whole.images.view(count, 2, 2, channels, side, side)
    pixels = parts.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, 2 * side, 2 * side)
    return ImageSet("mosaics", pixels, None, images.mean, images.std), whole.labels.view(count, 2, 2)


def per_place(classes: Tensor, places: int) -> Tensor:
    """The class at each of `places` x `places` places of a mosaic, (M, 2, 2) -> (M places^2,)."""
    wide = classes.repeat_interleave(places // 2, 1).repeat_interleave(places // 2, 2)
    return torch.flatten(wide)
