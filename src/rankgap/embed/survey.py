"""All that a map shows of a file of features: places, clusters, near-duplicates and outliers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankgap.choices import Placing
from rankgap.embed.clusters import ALONE, Clusters, Floats, Index, clustered, placed, reduced
from rankgap.embed.formats import FeatureFile, Listing
from rankgap.embed.neighbours import Likeness, compared, likeness
from rankgap.errors import UserError

SIMILARITY = 0.95  # of near-duplicates
PAIRS = 10_000  # of near-duplicates that are kept


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What is found in the features of N images.

    Attributes:
        places: on the map, (N, 2).
        clusters: groups of images.
        likeness: how alike they are.
        listing: their names, splits and labels.
    """

    places: Floats
    clusters: Clusters
    likeness: Likeness
    listing: Listing

    def outliers(self, most: int) -> Index:
        """The images least like any other, the most isolated first."""
        found: Index = np.argsort(self.likeness.nearest, kind="stable")[:most]
        return found

    def clusters_csv(self) -> str:
        """A line for each image: cluster (from 1; empty for none), place, distance to the cluster's centre.

        `representative` is 1 for the image of a cluster that is nearest to its centre, and `similarity` the mean
        similarity to the five nearest images.
        """
        first = {int(self.clusters.members(cluster)[0]) for cluster in range(self.clusters.count)}
        labels = self.listing.labels or [None] * len(self.listing.names)
        head = ["name", "split", "label", "cluster", "x", "y", "distance", "representative", "similarity"]
        rows = []
        for row, (name, split, label) in enumerate(
            zip(self.listing.names, self.listing.splits, labels, strict=True)
        ):
            cluster = int(self.clusters.of[row])
            is_alone = cluster == ALONE
            x, y = self.places[row]
            rows.append(
                [
                    name,
                    split,
                    label or "",
                    "" if is_alone else cluster + 1,
                    f"{x:.5g}",
                    f"{y:.5g}",
                    "" if is_alone else f"{self.clusters.distance[row]:.5g}",
                    int(row in first),
                    f"{self.likeness.nearest[row]:.4f}",
                ]
            )
        return _csv(head, rows)

    def pairs_csv(self) -> str:
        """A line for each pair of near-duplicates, the most similar first."""
        names = self.listing.names
        rows = [[names[a], names[b], f"{similarity:.4f}"] for a, b, similarity in self.likeness.pairs]
        return _csv(["first", "second", "similarity"], rows)


def survey(
    found: FeatureFile, *, method: Placing = "tsne", clusters: int | None = None, similarity: float = SIMILARITY
) -> Survey:
    """Place, group and compare the images of a file of features.

    Args:
        found: the file.
        method: what places the images (`clusters.placed`).
        clusters: their number; None lets HDBSCAN find it.
        similarity: the least similarity of near-duplicates (`neighbours.compared`).

    Raises:
        UserError: the features are tokens, of fewer than two images, not finite or all the same; or a number is
            outside its range.
    """
    if found.features.ndim != 2:
        raise UserError("the file holds tokens: write one vector for each image, without --tokens")
    if len(found.features) < 2:
        raise UserError("expected the features of two images at least, got one")
    if not 0 < similarity <= 1:
        raise UserError(f"--similarity must be above 0, and at most 1, got {similarity:g}")
    features = np.asarray(found.features)
    if clusters is not None and not 2 <= clusters <= len(features):
        raise UserError(f"--clusters must be from 2 to the number of images, {len(features):,}, got {clusters}")
    if not np.isfinite(features).all():
        raise UserError("some features are not finite, so the file has been changed or is damaged: embed again")
    if (features == features[0]).all():
        raise UserError("all images have the same features, so there is nothing to map: choose another encoder")
    components = reduced(features)
    places = placed(components, method)
    return Survey(
        places,
        clustered(components, places, clusters),
        likeness(compared(features), similarity, PAIRS),
        found.listing,
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
