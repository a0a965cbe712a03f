"""Small images and files for the tests of data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from rankgap.data.cutting import whole
from rankgap.data.decoding import Header, decode


def pixels(size: tuple[int, int] = (12, 12), channels: int = 3, seed: int = 0) -> Any:
    """(H, W, C) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def write(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values).save(path)
    return path


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def chw(values: Any) -> torch.Tensor:
    return torch.from_numpy(values).permute(2, 0, 1)


def squashed(file: BinaryIO, size: int, channels: int | None = None) -> tuple[Any, Header]:
    """The whole picture as (size, size, C), and its header."""
    (found,), header = decode(file, whole(size), channels)
    return found, header


def photograph(size: tuple[int, int] = (375, 500), which: int = 0) -> Image.Image:
    """One of scikit-learn's two photographs (427 x 640), cut to an aspect ratio and resized."""
    picture = Image.fromarray(load_sample_images().images[which])
    return ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)


def psnr(found: Any, wanted: Any) -> float:
    """The peak signal-to-noise ratio of values from 0 to 255, in dB."""
    error = np.square(np.asarray(found, float) - np.asarray(wanted, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
