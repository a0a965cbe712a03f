"""Random matrices with a seed, for the tests of spectra."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    q: Tensor = torch.linalg.qr(gaussian(n, n, seed=seed))[0]
    return q


def with_spectrum(s: Tensor, n: int, d: int, seed: int = 0) -> Tensor:
    r = len(s)
    z: Tensor = orthogonal(n, seed)[:, :r] * s @ orthogonal(d, seed + 1)[:, :r].T
    return z
