"""Images, one random view of them, and what was drawn for it, for the tests of views."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import functional as tv

from rankgap.views import Parameters, ViewConfig, Views

PLAIN: dict[str, Any] = {"flip": 0.0, "jitter_p": 0.0, "grey_p": 0.0}
WHOLE: dict[str, Any] = {**PLAIN, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
LEVEL = 1 / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_view(size: int, channels: int = 3, **config: Any) -> Views:
    return Views([ViewConfig(**config)], size, [0.0] * channels, [1.0] * channels)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(1))


def photographs(count: int, side: int) -> Tensor:
    """Squares cut from two photographs, uint8 (count, 3, side, side)."""
    photos = [np.array(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    cuts = []
    for i in range(count):
        y, x = rng.integers(0, 427 - 128), rng.integers(0, 640 - 128)
        cuts.append(torch.from_numpy(photos[i % 2][y : y + 128, x : x + 128]).permute(2, 0, 1))
    resized: Tensor = tv.resize(torch.stack(cuts), [side, side], antialias=True)
    return resized


def parameters(views: Views, sizes: list[tuple[int, int]], seed: int = 0) -> Parameters:
    """(B,) of each parameter that the first view of images of these sizes is made with."""
    height, width = torch.tensor(sizes).float().unbind(1)
    return Parameters(*(p[0] for p in views.draw(height, width, seeded(seed))))
