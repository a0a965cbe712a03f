"""Static pictures: ranks along training, a benchmark at a glance, views beside their images.

Each is drawn on a `Figure` of its own (no pyplot, so nothing global), returned and saved as PNG. Colours are
Okabe and Ito's, which the colour-blind tell apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

DPI = 100
ONLINE, TARGET = "#D55E00", "#0072B2"  # vermilion, blue
GROWS, COLLAPSES = "#56B4E9", "#CC79A7"  # sky blue, reddish purple (hatched too)
KNN, LINEAR = "#009E73", "#000000"
GREY = "#595959"


@dataclass(frozen=True, slots=True)
class RankTrace:
    """The ranks of one run along its training.

    Args:
        name: the run's title.
        step: training step or epoch of each reading.
        erank_online: effective rank of the online output at each reading.
        erank_target: of the target output.
        knn: accuracy of nearest neighbours in [0, 1], where it is known.
    """

    name: str
    step: Sequence[float]
    erank_online: Sequence[float]
    erank_target: Sequence[float]
    knn: float | None = None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The results of one method over several seeds.

    Args:
        name: the method's title.
        knn: accuracy of each seed in [0, 1].
        linear: likewise.
        erank_online: final effective rank of the online output of each seed.
        erank_target: of the target output.
    """

    name: str
    knn: Sequence[float]
    linear: Sequence[float]
    erank_online: Sequence[float]
    erank_target: Sequence[float]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BFBFBF")
    axes.tick_params(colors=GREY, labelsize=8, length=3)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: str | Path) -> Figure:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png", facecolor="white")
    return figure


def _log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, ... written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def _header(figure: Figure, title: str, reading: str) -> float:
    """Title and the sentence that says how to read; gives the height they take, as a share of the figure."""
    inches = figure.get_figheight()
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.1 / inches, title, size=12, weight="bold", va="top")
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.36 / inches, reading, size=9, color=GREY, va="top")
    return (0.42 + 0.16 * (1 + reading.count("\n"))) / inches


def ranks_figure(runs: Sequence[RankTrace], path: str | Path, *, x_label: str = "epoch") -> Figure:
    """Both branches' effective rank along training, one panel a run, on shared axes.

    Args:
        runs: 1 to about 20.
        path: of the PNG; its folder is made.
        x_label: what `RankTrace.step` counts.
    """
    assert runs, "no run to draw"
    columns = min(len(runs), 4 if len(runs) > 6 else 3 if len(runs) != 4 else 2)
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(max(2.75 * columns + 0.3, 6.4), 2.2 * rows + 1.25), dpi=DPI)
    reading = (
        "Target above online (blue area): dimensions grow. Below (purple, hatched): they collapse.\n"
        "Effective rank of a batch's correlation matrix, the last reading beside each line."
    )
    top = 1 - _header(figure, "Rank of both branches along training", reading) - 0.5 / figure.get_figheight()
    figure.subplots_adjust(
        left=0.55 / figure.get_figwidth(),
        right=1 - 0.6 / figure.get_figwidth(),
        top=top,
        bottom=0.45 / figure.get_figheight(),
        wspace=0.34,
        hspace=0.42,
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    values = np.concatenate([np.r_[r.erank_online, r.erank_target] for r in runs]).astype(float)
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 10 * values.min():
        panels[0].set_yscale("log")
        _log_ticks(panels[0].yaxis)
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
    return _save(figure, path)


def _rank_panel(axes: Axes, run: RankTrace) -> None:
    x, online, target = (np.asarray(v, dtype=float) for v in (run.step, run.erank_online, run.erank_target))
    _plain(axes)
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
        axes.text(0, 1.03, f"kNN {100 * run.knn:.1f}%", transform=axes.transAxes, size=8, color=GREY)


def _label_ends(axes: Axes, run: RankTrace) -> None:
    """Each line's name and last value beside its end, kept apart where the ends are close."""
    axes.get_ylim()  # the shared limits are settled here
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

    Rows are ordered by mean kNN accuracy, the best on top; the large dot is the mean, small dots are seeds.

    Args:
        rows: the methods.
        path: of the PNG; its folder is made.
        title: of the figure.
    """
    assert rows, "no row to draw"
    rows = sorted(rows, key=lambda row: np.nan_to_num(_mean(row.knn), nan=-1))
    figure = Figure(figsize=(9.2, 1.75 + 0.32 * len(rows)), dpi=DPI)
    reading = (
        "Left: large marks are means, small ones and bars the seeds. Right: an arrow runs from the online to the\n"
        "target effective rank; to the right (blue) dimensions grow, to the left (purple) they collapse."
    )
    width, height = figure.get_size_inches()
    left = 0.35 + 0.068 * max(len(row.name) for row in rows)
    top = 1 - _header(figure, title, reading) - 0.35 / height
    figure.subplots_adjust(left=left / width, right=1 - 0.25 / width, top=top, bottom=0.55 / height, wspace=0.08)
    accuracy, ranks = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.15, 1)})
    for axes in (accuracy, ranks):
        _plain(axes)
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
    _log_ticks(ranks.xaxis)
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
    return _save(figure, path)


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


def contact_sheet(images: Tensor, views: Tensor, path: str | Path) -> Figure:
    """Images beside their views, to see what the model will see.

    Args:
        images: originals, uint8 (B, C, H, W).
        views: (V, B, C, h, w), de-normalised: [0, 1] is shown, what lies outside is clipped.
        path: of the PNG; its folder is made.
    """
    assert views.shape[1] == len(images) > 0, (views.shape, images.shape)
    originals = images.float()[None] / 255  # (1, B, C, H, W)
    cell = max(96, min(224, views.shape[-1]))
    tiles = np.concatenate([_tiles(originals, cell), _tiles(views, cell)])  # (1 + V, B, cell, cell, 3)
    number, gap = len(tiles), 6
    groups = max(1, min(math.ceil(len(images) / 6), 1300 // (number * (cell + gap))))
    rows = math.ceil(len(images) / groups)
    group_width = number * (cell + gap) + 3 * gap
    header, margin = 84, 12
    width, height = groups * group_width - 4 * gap + 2 * margin, header + rows * (cell + gap) + margin
    width = max(width, 560)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for index in range(len(images)):
        group, row = divmod(index, rows)
        for column in range(number):
            x = margin + group * group_width + column * (cell + gap) + (gap if column else 0)
            y = header + row * (cell + gap)
            canvas[y : y + cell, x : x + cell] = tiles[column, index]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas)
    _header(
        figure,
        "Images and their views",
        "Left of each row: the image as stored. Beside it: the views the model trains on.",
    )
    for group in range(groups):
        for column in range(number):
            x = margin + group * group_width + column * (cell + gap) + (gap if column else 0)
            text = f"view {column}" if column else "image"
            figure.text(x / width, 1 - (header - 5) / height, text, size=8, color=GREY, va="bottom")
    return _save(figure, path)


def _tiles(stack: Tensor, cell: int) -> NDArray[np.uint8]:
    """Images (V, B, C, h, w) in [0, 1] as RGB (V, B, cell, cell, 3); small ones keep their pixels' edges."""
    stack = stack.detach().float().cpu().clamp(0, 1)
    stack = stack[:, :, :3] if stack.shape[2] >= 3 else stack[:, :, :1].expand(-1, -1, 3, -1, -1)
    shrinks = max(stack.shape[-2:]) > cell
    flat = stack.flatten(0, 1)
    if shrinks:
        flat = F.interpolate(flat, size=(cell, cell), mode="bilinear", antialias=True)
    else:
        flat = F.interpolate(flat, size=(cell, cell), mode="nearest-exact")
    tiles: NDArray[np.uint8] = flat.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return tiles.reshape(*stack.shape[:2], cell, cell, 3)
