"""A map of features, and the groups that they form. Everything is seeded, so that a map can be drawn again.

Shapes: N images, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsRegressor

from rankgap.choices import Placing

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

WIDTH = 50  # principal components that t-SNE and the clusters see
LARGEST = 20_000  # images that t-SNE places; it takes two minutes of a core, the others are placed beside them
ALONE = -1  # the cluster of images that belong to none
_PERPLEXITY = 30.0
_SMALLEST = 10  # images in a cluster
_DENSE = 5  # neighbours that tell how dense a place is
_SHARE = 200  # a cluster has at least one in so many images


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Groups of images, the largest first.

    Attributes:
        of: (N,) the cluster of each image; `ALONE` for one that belongs to none.
        distance: (N,) distance to the centre of the image's cluster, in `reduced` features; NaN if it has none.
        count: number of clusters.
        how: what found them, in words.
    """

    of: Index
    distance: Floats
    count: int
    how: str

    def members(self, cluster: int) -> Index:
        """The images of a cluster, the most typical first."""
        rows = np.flatnonzero(self.of == cluster)
        found: Index = rows[np.argsort(self.distance[rows], kind="stable")]
        return found


def reduced(features: Floats) -> Floats:
    """The first fifty principal components of features of length 1, or fewer, (N, min(50, N, F))."""
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found: Floats = PCA(min(WIDTH, *rows.shape), random_state=0).fit_transform(rows).astype(np.float32)
    return found


def sampled(count: int) -> Index:
    """The rows, in order, of a random choice of at most 20,000 of `count` images; always the same one."""
    found: Index = np.sort(np.random.default_rng(0).permutation(count)[:LARGEST])
    return found


def placed(components: Floats, method: Placing) -> Floats:
    """Places of the images on a map, (N, 2).

    Args:
        components: `reduced` features.
        method: pca takes the first two components; tsne keeps neighbours together, and takes a minute for each
            10,000 images. Of more than 20,000 it places a random choice, and each other image among its nearest.
    """
    count = len(components)
    flat = np.zeros((count, 2), np.float32)
    flat[:, : min(2, components.shape[1])] = components[:, :2]
    if method == "pca" or count < 4 or components.shape[1] < 2 or not flat.any():
        return flat
    chosen = sampled(count)
    tsne = TSNE(
        init="pca", learning_rate="auto", perplexity=min(_PERPLEXITY, (len(chosen) - 1) / 3), random_state=0
    )
    found: Floats = tsne.fit_transform(components[chosen]).astype(np.float32)
    if len(chosen) < count:
        near = KNeighborsRegressor(5, weights="distance").fit(components[chosen], found)
        found = near.predict(components).astype(np.float32)
    return found


def clustered(components: Floats, places: Floats, number: int | None) -> Clusters:
    """Groups of images.

    Args:
        components: `reduced` features.
        places: on the map, whose dense parts are the clusters (HDBSCAN) if their number is not given.
        number: of clusters, which k-means then finds in the components. If it is None, and HDBSCAN puts more than
            half of the images into one cluster or into none, k-means finds sqrt(N) / 3 of them.
    """
    count = len(components)
    raw, how = _dense(places), "dense parts of the map, by HDBSCAN"
    if number is not None or np.unique(raw, return_counts=True)[1].max() > count / 2:
        wanted = number or max(round(count**0.5 / 3), 2)
        raw = KMeans(wanted, n_init=4, random_state=0).fit_predict(components).astype(np.int64)
        how = f"{wanted} as asked, by k-means"
        if number is None:
            how = f"{wanted} by k-means, because no group of images is much denser than the rest"
    names, sizes = np.unique(raw[raw != ALONE], return_counts=True)
    order = names[np.argsort(-sizes, kind="stable")]
    of = np.full(count, ALONE, np.int64)
    distance = np.full(count, np.nan, np.float32)
    for cluster, name in enumerate(order):
        rows = raw == name
        of[rows] = cluster
        distance[rows] = np.linalg.norm(components[rows] - components[rows].mean(0), axis=1)
    return Clusters(of, distance, len(order), how)


def _dense(places: Floats) -> Index:
    smallest = max(_SMALLEST, len(places) // _SHARE)
    if len(places) <= smallest:
        return np.zeros(len(places), np.int64)
    found: Index = HDBSCAN(min_cluster_size=smallest, min_samples=_DENSE, copy=True).fit_predict(places)
    return found.astype(np.int64)
