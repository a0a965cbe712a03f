"""Crops of scikit-learn's two photographs, so that the examples with patches need no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset[Tensor]):
    """Random crops (3, size, size) of two photographs at half their size, with mean 0 and deviation 1.

    Args:
        size: pixels per side.
        count: crops in an epoch.
    """

    def __init__(self, size: int = 32, count: int = 2048) -> None:
        pixels = torch.stack([torch.from_numpy(i.copy()) for i in load_sample_images().images])
        photos = F.avg_pool2d(pixels.movedim(-1, 1).float(), 2)  # (2, 3, H, W)
        self.photos = (photos - photos.mean()) / photos.std()
        self.size, self.count = size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        _, _, height, width = self.photos.shape
        top, left = (int(torch.randint(side - self.size, ())) for side in (height, width))
        return self.photos[index % 2, :, top : top + self.size, left : left + self.size]

    def batches(self, size: int = 64, collate: Callable[[list[Tensor]], Any] | None = None) -> DataLoader[Any]:
        """Shuffled batches."""
        return DataLoader(self, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate)
