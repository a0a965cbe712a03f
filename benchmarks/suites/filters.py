"""The spectral filters and the effective rank, against the decompositions that their definitions name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.suites.timing import Row, Settings, compared
from rankgap.filters.spectral import spectral_filter
from rankgap.spectra.effective_rank import effective_rank, effective_rank_of


def _as_published(z: Tensor, power: float) -> Tensor:
    """The online filter as the RDM authors wrote it: an SVD of the batch, W = V s^p V^T held constant."""
    with torch.no_grad():
        _, s, vt = torch.linalg.svd(z, full_matrices=False)
        w: Tensor = vt.mT @ torch.diag(s**power) @ vt
    return z @ w


def _target_as_published(z: Tensor, power: float) -> Tensor:
    """The target filter: U s^(1 + p) V^T, without gradient."""
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(z, full_matrices=False)
        filtered: Tensor = u @ torch.diag(s ** (1 + power)) @ vt
        return filtered


def _with_backward(run: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[], None]:
    leaf = z.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        run(leaf).sum().backward()

    return step


def measure(settings: Settings) -> list[Row]:
    """Measure filters at N = 256, D = 2048, and the effective rank of 10,000 x 2048 features."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 2048, generator=generator) @ torch.diag(torch.logspace(0, -2, 2048))
    features = torch.randn(10_000, 2048, generator=generator) @ torch.diag(torch.logspace(0, -2, 2048))
    wanted = effective_rank_of(torch.linalg.svdvals(features.double()))
    error = abs(float(effective_rank(features) / wanted) - 1)
    assert error < 1e-3, error
    cases: list[tuple[str, str, Callable[[], object], Callable[[], object], float]] = [
        (
            "online filter power:0.5, forward and backward, N 256, D 2048, float64 decomposition",
            "SVD as published",
            _with_backward(lambda x: spectral_filter(x, "power:0.5"), z),
            _with_backward(lambda x: _as_published(x, 0.5), z),
            5.0,
        ),
        (
            "target filter power:-0.5, the same size",
            "SVD as published",
            lambda: spectral_filter(z, "power:-0.5", branch="target"),
            lambda: _target_as_published(z, -0.5),
            3.0,
        ),
        (
            f"effective rank of 10,000 x 2048 features (relative error {error:.1e})",
            "torch.linalg.svdvals",
            lambda: effective_rank(features),
            lambda: effective_rank_of(torch.linalg.svdvals(features)),
            2.0,
        ),
    ]
    return [
        compared(what, against, ours, theirs, bar=bar, repeats=settings.repeats)
        for what, against, ours, theirs, bar in cases
    ]
