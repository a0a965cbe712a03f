"""Scikit-learn's digits as RGB pictures of 32 px, so that the examples need no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Digits(Dataset[Any]):
    """1,797 digits, each passed through a transform.

    Args:
        transform: takes a PIL image; for self-supervised training it returns two views or more.
    """

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        pixels = (load_digits().images * 255 / 16).astype(np.uint8)
        self.images = [Image.fromarray(p).resize((32, 32)).convert("RGB") for p in pixels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index])

    def batches(self, size: int = 128) -> DataLoader[Any]:
        """Shuffled batches."""
        return DataLoader(self, batch_size=size, shuffle=True, drop_last=True)


_crop = transforms.Compose([transforms.RandomResizedCrop(32, (0.5, 1.0)), transforms.ToTensor()])


def two_crops(image: Image.Image) -> tuple[Tensor, Tensor]:
    """Two views (3, 32, 32) of a picture."""
    return _crop(image), _crop(image)


def named_crops(image: Image.Image) -> dict[str, Tensor]:
    """The two views by name."""
    view1, view2 = two_crops(image)
    return {"view1": view1, "view2": view2}
