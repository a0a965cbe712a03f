"""A small run on photographs of two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train

NAMES = [f"{kind}/{k:02}.png" for kind in ("cat", "dog") for k in range(24)]


def photo(height: int, width: int, seed: int) -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def trained(home: Path) -> Path:
    """A run in `home/run` on the images in `home/photos`."""
    for k, name in enumerate(NAMES):
        path = home / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(60 + k, 105 - k, k).save(path)
    train(
        TrainConfig(
            data=f"folder:{home / 'photos'}",
            out=str(home / "run"),
            epochs=1,
            batch_size=8,
            size=32,
            protocol=(),
            loggers=(),
        )
    )
    return home / "run"
