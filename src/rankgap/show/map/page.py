"""The map of a data set: one HTML page that opens from disk without a network.

Points can be coloured by cluster or by label, and show their image under the pointer. Below the map stand the
clusters with their most typical images, the images that are least like any other, and near-duplicates.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

from rankgap.choices import Placing
from rankgap.data.names import plural, without_folders
from rankgap.embed.clusters import ALONE, LARGEST, WIDTH, sampled
from rankgap.embed.formats import FeatureFile
from rankgap.embed.survey import Survey, survey
from rankgap.run.files import replace_file
from rankgap.run.saved import library_versions
from rankgap.show.colours import GROUPS
from rankgap.show.map.thumbnails import ACROSS, SHEET, Pictures, Sheets
from rankgap.show.outputs import PAGE, output_file
from rankgap.show.report.page import Contents, escaped, own_file, page, write_page

CARDS, TYPICAL = 60, 10  # clusters that have a card, and images on it
OUTLIERS, PAIRS = 24, 60  # that are shown
LISTED = 96  # px, side of a picture in a list
# Images -> the side of the pictures under the pointer, so that all of them take about 8 MB.
_SIDES = {6_000: 64, 12_000: 48, LARGEST: 32}

_METHODS = {"tsne": "t-SNE", "pca": "the first two principal components"}
_MAP = (
    "Each point is an image, and images that the encoder finds alike lie together. Distances between groups mean "
    "little. Drag to zoom in, and double-click to zoom out."
)
_CLUSTERS = "The largest first, each with its most typical images. Choose one to see it on the map."
_OUTLIERS = (
    "The images that are least like their five nearest neighbours, with that similarity: often damaged, "
    "mislabelled, or of something else."
)
_PAIRS = (
    "Pairs with a similarity of {similarity:g} or more: the cosine of their features, in which each principal "
    "component has the same weight. At 1, the encoder sees no difference."
)


class MapFiles(NamedTuple):
    """What `write_map` has written, and found.

    Attributes:
        page: the page.
        clusters: the table of all images.
        pairs: the table of near-duplicates.
        lines: what was found, and what is missing on the page.
    """

    page: Path
    clusters: Path
    pairs: Path
    lines: list[str]


def write_map(
    found: FeatureFile,
    out: str | Path,
    *,
    method: Placing,
    clusters: int | None,
    similarity: float,
    data: str | None = None,
) -> MapFiles:
    """Write the map of a file of features, and the tables of its clusters and near-duplicates beside it.

    Args:
        found: the file.
        out: the page's file (.html).
        method: what places the images.
        clusters: their number; None lets HDBSCAN find it.
        similarity: the least similarity of near-duplicates.
        data: where the images are now; by default where they were.

    Raises:
        UserError: as in `survey`, there are no images at `data`, or a file cannot be written.
    """
    path = output_file(out, PAGE)
    pictures = Pictures(found, data)
    made = survey(found, method=method, clusters=clusters, similarity=similarity)
    drawn = _Page(found, made, pictures, method, similarity)
    write_page(drawn.text(), path)
    tables = path.with_suffix(".clusters.csv"), path.with_suffix(".duplicates.csv")
    for table, text in zip(tables, (made.clusters_csv(), made.pairs_csv()), strict=True):
        replace_file(table, text.encode(errors="backslashreplace"))
    return MapFiles(path, *tables, drawn.lines())


class _Page:
    """The page, section by section."""

    def __init__(
        self, found: FeatureFile, made: Survey, pictures: Pictures, method: Placing, similarity: float
    ) -> None:
        self.record, self.made, self.method, self.similarity = found.record, made, method, similarity
        self.names, self.labels = _below_common_folder(found.listing.names), found.listing.labels
        run, *which = found.record.encoder.rsplit(", ", 2)  # timm:NAME has no folder
        self.encoder = f"{Path(run).name} ({', '.join(which)})" if which else run
        count = len(self.names)
        self.cards = [made.clusters.members(k)[:TYPICAL].tolist() for k in range(min(made.clusters.count, CARDS))]
        self.outliers = made.outliers(min(OUTLIERS, count)).tolist()
        self.pairs = made.likeness.pairs[:PAIRS]
        typical = (row for card in self.cards for row in card)
        listed = [*typical, *self.outliers, *(row for pair in self.pairs for row in pair[:2])]
        self.listed = pictures.sheets(list(dict.fromkeys(listed)), LISTED)
        side = next((side for most, side in _SIDES.items() if count <= most), min(_SIDES.values()))
        self.small = pictures.sheets(sampled(count).tolist(), side)
        self.place = {row: k for k, row in enumerate(self.listed.rows)}
        self.notes = pictures.notes
        if pictures.sources and self.small.missing:
            self.notes = [
                *self.notes,
                f"{self.small.missing:,} images are gone or broken: their pictures are grey",
            ]

    def text(self) -> str:
        """The page as HTML."""
        here = resources.files("rankgap.show.map")
        points = json.dumps(self._points(), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        layout = {
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 11},
            "hovermode": "closest",
            "legend": {"orientation": "h", "y": 0, "yanchor": "top", "x": 0, "itemsizing": "constant"},
            "xaxis": {"visible": False},
            "yaxis": {"visible": False, "scaleanchor": "x"},
        }
        title = f"rankgap: a map of {len(self.names):,} images"
        body = [self._glance(), self._map(), self._clusters(), self._outliers(), self._pairs(), self._method()]
        figures = {"map": {"data": [], "layout": layout, "frames": [], "file": "map"}}
        about = (
            f"<p>{escaped(without_folders(self.record.data))}, seen by {escaped(self.encoder)}. Made by rankgap "
            f"{library_versions()['rankgap']}. This page holds all that it shows, and sends no data.</p>"
        )
        return page(
            Contents(title=escaped(title), kind="map", body="\n".join(body), figures=figures),
            about=about,
            scripts=f'<script type="application/json" id="points">{points}</script>\n'
            f"<script>{get_plotlyjs()}</script>\n<script>{own_file('page.js')}</script>\n"
            f"<script>{(here / 'map.js').read_text(encoding='utf-8')}</script>",
            style=(here / "map.css").read_text(encoding="utf-8") + _rules(self.listed),
        )

    def _points(self) -> dict[str, Any]:
        """What the map's script needs of each image."""
        groups = sorted(set(filter(None, self.labels or [])))
        number = {name: k for k, name in enumerate(groups)}
        return {
            "x": [float(f"{x:.4g}") for x in self.made.places[:, 0].tolist()],
            "y": [float(f"{y:.4g}") for y in self.made.places[:, 1].tolist()],
            "names": self.names,
            "clusters": self.made.clusters.of.tolist(),
            "labels": None if self.labels is None else [number.get(label or "", ALONE) for label in self.labels],
            "classes": groups,
            "colours": GROUPS,
            "across": ACROSS,
            "sheet": SHEET,
            "sheets": self.small.sheets,
            "pictures": None if len(self.small.rows) == len(self.names) else self.small.rows,
        }

    def lines(self) -> list[str]:
        """What was found, and what is missing on the page."""
        clusters, likeness = self.made.clusters, self.made.likeness
        alone = int((clusters.of == ALONE).sum())
        others = f"; {_images(alone)} in none" if alone else ""
        return [
            f"{_counted(clusters.count, 'cluster')} ({clusters.how}){others}",
            f"{_counted(likeness.count, 'pair')} of near-duplicates (similarity {self.similarity:g} or more)",
            *self.notes,
        ]

    def _glance(self) -> str:
        place = self.record.data.partition(":")[2]
        name = Path(place).name if os.path.isabs(place) else place  # the page is handed to others
        items = "".join(
            f"<li>{escaped(line.replace(place, name) if place else line)}</li>" for line in self.lines()
        )
        return f'<section id="glance"><ul>{items}</ul></section>'

    def _map(self) -> str:
        choice = "" if self.labels is None else "<option value='labels'>label</option>"
        return (
            f'<section id="whole"><h2>Map</h2><p>{_MAP}</p><figure><figcaption><label>Colour by '
            f"<select id='by'><option value='clusters'>cluster</option>{choice}</select></label>"
            "<small></small></figcaption>"
            '<div class="plot" id="map" role="img" aria-label="Map of all images"></div></figure>'
            '<div id="tip" hidden><i></i><b></b><span></span></div></section>'
        )

    def _clusters(self) -> str:
        clusters = self.made.clusters
        cards = "".join(self._card(k, rows) for k, rows in enumerate(self.cards))
        more = clusters.count - len(self.cards)
        said = f"<p>{_counted(more, 'smaller cluster')} more in the table beside this page.</p>" if more else ""
        return (
            f'<section id="clusters"><h2>Clusters</h2><p>{_CLUSTERS}</p><div class="cards">{cards}</div>{said}'
            "</section>"
        )

    def _card(self, cluster: int, rows: Sequence[int]) -> str:
        members = self.made.clusters.members(cluster)
        share = len(members) / len(self.names)
        colour = GROUPS[cluster % len(GROUPS)]
        return (
            f'<article><button type="button" data-cluster="{cluster}" aria-pressed="false">'
            f'<span class="dot" style="background:{colour}"></span>Cluster {cluster + 1}</button> '
            f"<small>{_images(len(members))}, {share:.1%}{self._mostly(members)}</small>"
            f'<div class="pictures">{"".join(map(self._picture, rows))}</div></article>'
        )

    def _mostly(self, members: Iterable[int]) -> str:
        """The most frequent labels of some images."""
        if self.labels is None:
            return ""
        found = Counter(self.labels[row] for row in members)
        most = [f"{name or 'no label'} {times / found.total():.0%}" for name, times in found.most_common(3)]
        return escaped(f": {', '.join(most)}")

    def _outliers(self) -> str:
        near = self.made.likeness.nearest
        items = "".join(self._figure(row, f"{near[row]:.2f}") for row in self.outliers)
        return (
            f'<section id="outliers"><h2>Unlike all others</h2><p>{_OUTLIERS}</p><div class="tiles">{items}</div>'
            "</section>"
        )

    def _figure(self, row: int, said: str) -> str:
        return (
            f"<div class='tile'>{self._picture(row)}<small>{escaped(self.names[row])} <b>{said}</b></small></div>"
        )

    def _pairs(self) -> str:
        count = self.made.likeness.count
        said = _PAIRS.format(similarity=self.similarity)
        items = "".join(
            f"<li>{self._picture(a)}{self._picture(b)}<small><b>{similarity:.3f}</b> {escaped(self.names[a])}<br>"
            f"{escaped(self.names[b])}</small></li>"
            for a, b, similarity in self.pairs
        )
        more = f"<p>The first {len(self.pairs)} of {count:,} pairs.</p>" if count > len(self.pairs) else ""
        shown = f"<ul>{items}</ul>" if items else "<p>There are none.</p>"
        return f'<section id="pairs"><h2>Near-duplicates</h2><p>{said}</p>{more}{shown}</section>'

    def _method(self) -> str:
        record = self.record
        lines = [
            f"encoder: {self.encoder}; views of {record.size} px, {record.centre:.3g} of the shorter side",
            f"features: {' x '.join(map(str, record.shape))}, computed by rankgap {record.rankgap}",
            f"map: {_METHODS[self.method]} of up to {WIDTH} principal components of the features, seed 0",
            f"clusters: {self.made.clusters.how}",
        ]
        items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
        return f"<section><details><summary>How this was made</summary><ul>{items}</ul></details></section>"

    def _picture(self, row: int) -> str:
        """An image in a list; its name alone if there is no picture."""
        name = escaped(self.names[row])
        if not self.listed.sheets:
            return f'<span class="picture gone" title="{name}">{name}</span>'
        sheet, place = divmod(self.place[row], SHEET)
        down, across = divmod(place, ACROSS)
        where = f"background-position:-{across * LISTED}px -{down * LISTED}px"
        said = f'role="img" aria-label="{name}" title="{name}"'
        return f'<span class="picture listed-{sheet}" {said} style="{where}"></span>'


def _rules(listed: Sheets) -> str:
    return "".join(f".listed-{k} {{ background-image: url({sheet}); }}\n" for k, sheet in enumerate(listed.sheets))


_NAMED_ROW = re.compile(r"row \d+ \((.*)\)", re.DOTALL)


def _below_common_folder(names: list[str]) -> list[str]:
    """Names of images; where rows of a table name files by whole paths, those below the folder that all share."""
    folders = [os.path.dirname(row[1]) for name in names if (row := _NAMED_ROW.fullmatch(name))]
    if not folders or not all(map(os.path.isabs, folders)):
        return names
    common = os.path.join(os.path.commonpath(folders), "")
    return [name.replace(f" ({common}", " (", 1) for name in names]


def _images(count: int) -> str:
    return _counted(count, "image")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {plural(count, noun)}"
