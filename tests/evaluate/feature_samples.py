"""Labelled features with and without structure, for the tests of classifiers."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def clusters(rows: int, classes: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    return centres[labels] + torch.randn(rows, width, generator=generator), labels


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=dtype), torch.tensor(data.target)
    return x[:1200], y[:1200], x[1200:], y[1200:]
