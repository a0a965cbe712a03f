"""kNN and linear probe on frozen features, against scikit-learn on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.suites.timing import Row, Settings, compared
from rankgap.evaluate import knn, linear_probe

BANK, QUERIES, WIDTH, CLASSES = 50_000, 10_000, 512, 10
NEIGHBOURS, TEMPERATURE = 20, 0.1


def features(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping classes like an encoder's: a decaying spectrum in directions off the axes, a mean, unit rows."""
    shared = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, WIDTH)
    centres = torch.randn(CLASSES, WIDTH, generator=shared) * scales * 0.08
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=shared))[0]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    nuisance = torch.randn(rows, WIDTH, generator=generator) * torch.where(torch.arange(WIDTH) < 8, 1.0, 0.4)
    z = (centres[labels] + nuisance * scales) @ turn + 0.1
    return torch.nn.functional.normalize(z), labels


def measure(settings: Settings) -> list[Row]:
    """Measure 50,000 x 512 features against 10,000 queries."""
    (bank, labels), (queries, wanted) = features(BANK, 1), features(QUERIES, 2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_device = [t.to(device) for t in (bank, labels, queries, wanted)]
    x, y, q, w = (t.numpy() for t in (bank, labels, queries, wanted))

    def weights(distances: np.ndarray) -> np.ndarray:
        # scikit-learn's fast search is Euclidean; for unit rows |a - b|^2 = 2 - 2 cos.
        return np.exp((1 - distances**2 / 2) / TEMPERATURE)

    neighbours = KNeighborsClassifier(NEIGHBOURS, weights=weights, algorithm="brute", n_jobs=-1).fit(x, y)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    cases: list[tuple[str, Callable[[], float], Callable[[], float]]] = [
        (
            "kNN",
            lambda: knn(*on_device, k=NEIGHBOURS, temperature=TEMPERATURE).top1,
            lambda: float((neighbours.predict(q) == w).mean()),
        ),
        ("linear probe", lambda: linear_probe(*on_device).top1, lambda: probe.fit(x, y).score(q, w)),
    ]
    rows = []
    for name, ours, theirs in cases:
        found, reference = ours(), theirs()
        assert abs(found - reference) < 0.002, (name, found, reference)
        rows.append(
            compared(
                f"{name}, {BANK:,} x {WIDTH} against {QUERIES:,} queries on {device}: {found:.1%}",
                f"scikit-learn, {os.cpu_count()} cores: {reference:.1%}",
                ours,
                theirs,
                bar=1.0,
                repeats=settings.repeats,
            )
        )
    return rows
