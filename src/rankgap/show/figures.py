"""Static pictures: effective ranks during training, and a benchmark at a glance.

Each is drawn on its own `Figure` (without pyplot, so there is no global state), returned, and saved in the format
of its file's suffix: PNG, PDF or SVG. The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rankgap.data.scanning import SOFTWARE
from rankgap.show.colours import AXIS, COLLAPSES, GREY, GRID, GROWS, KNN, LINEAR, ONLINE, TARGET
from rankgap.show.columns import KNN as KNN_COLUMN
from rankgap.show.outputs import PICTURE, output_file
from rankgap.watch.reading import Reading

DPI = 100


class Picture(Figure):
    """A figure that notebooks display."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, dpi=DPI, format="png", facecolor="white")
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class RankTrace:
    """The effective ranks of one run during training.

    Args:
        name: the run's title.
        step: training step or epoch of each reading.
        erank_online: effective rank of the online output at each reading.
        erank_target: effective rank of the target output at each reading.
        knn: kNN accuracy in [0, 1], if it is known.
    """

    name: str
    step: Sequence[float]
    erank_online: Sequence[float]
    erank_target: Sequence[float]
    knn: float | None = None

    @classmethod
    def of(cls, name: str, readings: Iterable[Reading]) -> Self:
        """The ranks in a monitor's history, by training step."""
        rows = [(float(r.step), r.erank_online, r.erank_target) for r in readings]
        step, online, target = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(name, step, online, target)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The results of one method over several seeds.

    Args:
        name: the method's title.
        knn: kNN accuracy for each seed in [0, 1].
        linear: accuracy of the linear probe for each seed in [0, 1].
        erank_online: final effective rank of the online output for each seed.
        erank_target: final effective rank of the target output for each seed.
    """

    name: str
    knn: Sequence[float]
    linear: Sequence[float]
    erank_online: Sequence[float]
    erank_target: Sequence[float]


def plain(axes: Axes) -> None:
    """Remove the box from the axes, and draw a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS)
    axes.tick_params(colors=GREY, labelsize=8, length=3)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: str | Path) -> Figure:
    """Save a picture, marked as ours so that it is never read as data. Its folder is created if needed.

    Raises:
        UserError: the file's suffix is not one of `outputs.PICTURE`.
    """
    path = output_file(path, PICTURE)
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix[1:].lower()
    by = "Software" if form == "png" else "Creator"  # the key under which each format names the program
    figure.savefig(path, dpi=DPI, format=form, facecolor="white", metadata={by: SOFTWARE})
    return figure


def log_ticks(axis: Axis) -> None:
    """Put ticks at 1, 2, 5, 10, ..., written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def header(figure: Figure, title: str, reading: str) -> float:
    """Write the title and how to read the figure; return the share of its height that they take."""
    inches = figure.get_figheight()
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.1 / inches, title, size=12, weight="bold", va="top")
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.36 / inches, reading, size=9, color=GREY, va="top")
    return (0.42 + 0.16 * (1 + reading.count("\n"))) / inches


def lay_out(
    figure: Figure,
    title: str,
    reading: str,
    *,
    left: float,
    right: float,
    bottom: float,
    above: float,
    **gaps: float,
) -> None:
    """Write the header and set the margins around the panels.

    Args:
        figure: the figure, without panels yet.
        title: as in `header`.
        reading: as in `header`.
        left: inches left of the panels.
        right: inches right of the panels.
        bottom: inches below the panels.
        above: inches between the panels and the header.
        gaps: `wspace` and `hspace`, the gaps between panels as shares of a panel.
    """
    width, height = figure.get_size_inches()
    top = 1 - header(figure, title, reading) - above / height
    figure.subplots_adjust(left=left / width, right=1 - right / width, top=top, bottom=bottom / height, **gaps)


def ranks_figure(runs: Sequence[RankTrace], path: str | Path | None = None, *, x_label: str = "epoch") -> Figure:
    """Both branches' effective rank during training, one panel per run, on shared axes.

    Args:
        runs: the runs, 1 to about 20.
        path: the picture's file (.png, .pdf, .svg); its folder is created if there is none. None writes no file.
        x_label: the unit of `RankTrace.step`.
    """
    assert runs, "no run to draw"
    columns = min(len(runs), 4 if len(runs) > 6 else 3 if len(runs) != 4 else 2)
    rows = math.ceil(len(runs) / columns)
    figure = Picture(figsize=(max(2.75 * columns + 0.3, 6.4), 2.2 * rows + 1.25), dpi=DPI)
    reading = (
        "Target above online (blue area): dimensions grow. Below (purple, hatched): they collapse.\n"
        "Effective rank of a batch's correlation matrix; the last reading is beside each line."
    )
    title = "Effective rank of both branches during training"
    lay_out(figure, title, reading, left=0.55, right=0.6, bottom=0.45, above=0.5, wspace=0.34, hspace=0.42)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    values = np.concatenate([np.r_[r.erank_online, r.erank_target] for r in runs]).astype(float)
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 10 * values.min():
        panels[0].set_yscale("log")
        log_ticks(panels[0].yaxis)
    for panel, run in zip(panels, runs, strict=False):
        _rank_panel(panel, run)
    for panel, run in zip(panels, runs, strict=False):
        _label_ends(panel, run)
    for index, panel in enumerate(panels):
        panel.set_visible(index < len(runs))
        if index + columns >= len(runs):
            panel.tick_params(labelbottom=True)
            panel.set_xlabel(x_label, size=8, color=GREY)
        if index % columns == 0:
            panel.set_ylabel("effective rank", size=8, color=GREY)
    return figure if path is None else save(figure, path)


def _rank_panel(axes: Axes, run: RankTrace) -> None:
    x, online, target = (np.asarray(v, dtype=float) for v in (run.step, run.erank_online, run.erank_target))
    plain(axes)
    marker = "o" if len(x) < 2 else ""
    axes.plot(x, target, color=TARGET, linewidth=1.5, marker=marker, label="target")
    axes.plot(x, online, color=ONLINE, linewidth=1.5, marker=marker, label="online")
    axes.fill_between(
        x, online, target, where=target > online, interpolate=True, color=GROWS, alpha=0.35, linewidth=0
    )
    axes.fill_between(
        x,
        online,
        target,
        where=target <= online,
        interpolate=True,
        facecolor=COLLAPSES,
        edgecolor="white",
        alpha=0.6,
        hatch="////",
        linewidth=0,
    )
    axes.set_title(textwrap.fill(run.name, 30), size=9, weight="bold", loc="left", pad=14, parse_math=False)
    if run.knn is not None and math.isfinite(run.knn):
        axes.text(0, 1.03, f"kNN {KNN_COLUMN.text(run.knn)}%", transform=axes.transAxes, size=8, color=GREY)


def _label_ends(axes: Axes, run: RankTrace) -> None:
    """Write each line's name and last value beside its end, moved apart if the ends are close."""
    axes.get_ylim()  # this settles the shared limits
    ends: list[tuple[float, float, str, str]] = []  # height as a share of the panel, value, name, colour
    for name, values, colour in (("online", run.erank_online, ONLINE), ("target", run.erank_target, TARGET)):
        finite = [float(v) for v in values if math.isfinite(v)]
        if finite:
            height = float((axes.transData + axes.transAxes.inverted()).transform((0, finite[-1]))[1])
            ends.append((height, finite[-1], name, colour))
    ends.sort()
    gap = 0.2
    if len(ends) == 2 and ends[1][0] - ends[0][0] < gap:
        middle = min(max((ends[0][0] + ends[1][0]) / 2, gap / 2), 1 - gap / 2)
        ends = [(middle - gap / 2, *ends[0][1:]), (middle + gap / 2, *ends[1][1:])]
    for height, value, name, colour in ends:
        text = f"{name}\n{value:.3g}"
        axes.text(
            1.02, height, text, transform=axes.transAxes, size=8, color=colour, va="center", linespacing=0.95
        )


def mini_figure(
    rows: Sequence[ResultRow], path: str | Path, *, title: str = "Accuracy and rank difference"
) -> Figure:
    """Accuracy of each method over its seeds, beside the final effective ranks of both branches.

    Rows are ordered by mean kNN accuracy, the best on top. Large marks are means, and small marks are seeds.

    Args:
        rows: the methods.
        path: the picture's file (.png, .pdf, .svg); its folder is created if there is none.
        title: title of the figure.
    """
    assert rows, "no row to draw"
    rows = sorted(rows, key=lambda row: np.nan_to_num(_mean(row.knn), nan=-1))
    figure = Figure(figsize=(9.2, 1.75 + 0.32 * len(rows)), dpi=DPI)
    reading = (
        "Left: large marks are means, small marks and bars are seeds. Right: an arrow runs from the online to\n"
        "the target effective rank. To the right (blue) dimensions grow, to the left (purple) they collapse."
    )
    left = 0.35 + 0.068 * max(len(row.name) for row in rows)
    lay_out(figure, title, reading, left=left, right=0.25, bottom=0.55, above=0.35, wspace=0.08)
    accuracy, ranks = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.15, 1)})
    for axes in (accuracy, ranks):
        plain(axes)
        axes.tick_params(axis="y", length=0)
    for y, row in enumerate(rows):
        _seeds(accuracy, y + 0.13, row.knn, KNN, "o")
        _seeds(accuracy, y - 0.13, row.linear, LINEAR, "D")
        _rank_arrow(ranks, y, _mean(row.erank_online), _mean(row.erank_target))
    accuracy.set_yticks(range(len(rows)), [row.name for row in rows], size=9, color="black", parse_math=False)
    accuracy.set_ylim(-0.6, len(rows) - 0.4)
    accuracy.set_xlabel("accuracy (%)", size=9, color=GREY)
    ranks.set_xlabel("final effective rank, of the correlation (log scale)", size=9, color=GREY)
    ranks.set_xscale("log")
    log_ticks(ranks.xaxis)
    for axes, labels in (
        (accuracy, (("kNN", KNN, "o"), ("linear", LINEAR, "D"))),
        (ranks, (("online", ONLINE, "o"), ("target", TARGET, "o"))),
    ):
        marks = [Line2D([], [], color=c, marker=m, linestyle="", markersize=6, label=n) for n, c, m in labels]
        axes.legend(
            handles=marks,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=2,
            frameon=False,
            fontsize=9,
            handletextpad=0,
        )
    return save(figure, path)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def _seeds(axes: Axes, y: float, shares: Sequence[float], colour: str, marker: str) -> None:
    percent = [100 * v for v in shares if math.isfinite(v)]
    if percent:
        axes.plot([min(percent), max(percent)], [y, y], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(percent, [y] * len(percent), marker, color=colour, markersize=2.5, linestyle="", alpha=0.6)
        axes.plot(_mean(percent), y, marker, color=colour, markersize=6)


def _rank_arrow(axes: Axes, y: float, online: float, target: float) -> None:
    grows = target > online
    axes.plot([online, target], [y, y], color=GROWS if grows else COLLAPSES, linewidth=3, solid_capstyle="butt")
    axes.plot(target, y, ">" if grows else "<", color=TARGET, markersize=7)
    axes.plot(online, y, "o", color=ONLINE, markersize=6)
