"""Near-duplicates and outliers, from the cosine similarity of all pairs, in blocks of rows.

Shapes: N images, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

WIDTH = 128  # directions in which images are compared
NEAREST = 5  # neighbours whose mean similarity tells how alone an image is
_CELLS = 2**24  # similarities that are held at once

Floats = npt.NDArray[np.float32]


class Pair(NamedTuple):
    """Two images, by their rows, and their similarity."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How alike images are.

    Attributes:
        pairs: the most similar pairs above the threshold, the most similar first.
        count: number of all pairs above it.
        nearest: (N,) mean similarity of each image to its five nearest ones.
    """

    pairs: list[Pair]
    count: int
    nearest: Floats


def compared(features: Floats) -> Floats:
    """Features as they are compared: principal components of variance 1, as rows (N, D) of length 1.

    Of a network that has barely learned, a few directions hold nearly all of the variance, and any two images are
    alike in them. Once all directions have the same weight, a copy of an image stands out. There are at most 128
    directions, and ten images or more for each: with as many directions as images, no two would be alike.
    """
    count, width = features.shape
    directions = min(WIDTH, width, max(count // 10, 2))
    found = PCA(directions, whiten=True, random_state=0).fit_transform(features)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    rows: Floats = (found / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return rows


def likeness(rows: Floats, threshold: float, most: int) -> Likeness:
    """Compare all pairs of images.

    Args:
        rows: (N, D) of length 1, as `compared` gives them.
        threshold: the least cosine similarity of a near-duplicate.
        most: the number of pairs to keep.
    """
    count = len(rows)
    near = min(NEAREST, count - 1)
    nearest = np.zeros(count, np.float32)
    kept: list[Pair] = []
    total = 0
    step = max(_CELLS // count, 1)
    for start in range(0, count, step):
        block = rows[start : start + step] @ rows.T  # (B, N)
        own = np.arange(len(block))
        block[own, own + start] = -np.inf
        if near:
            nearest[start : start + step] = np.partition(block, -near, axis=1)[:, -near:].mean(1)
        block[np.arange(count) <= (own + start)[:, None]] = -np.inf  # each pair once
        first, second = np.nonzero(block >= threshold)
        total += len(first)
        values = block[first, second]
        order = np.argsort(-values, kind="stable")[:most]
        kept += [Pair(int(first[k]) + start, int(second[k]), float(values[k])) for k in order]
        kept = sorted(kept, key=lambda pair: (-pair.similarity, pair.first, pair.second))[:most]
    return Likeness(kept, total, nearest)
