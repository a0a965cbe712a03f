"""The figures of the report, one function each: from a run's files to Plotly's traces and the slider's frames.

Numbers are plain lists, not arrays: Plotly would pack arrays in base64, and other programs read the page too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from rankgap.notebook import thin
from rankgap.run.config import file_name
from rankgap.show.colours import COLLAPSES, GROWS
from rankgap.show.columns import KNN, Column, written
from rankgap.show.pair_figures import filter_scores, largest_passed
from rankgap.show.report.runs import Run
from rankgap.spectra.pair import PairSpectrum

READINGS, POINTS = 400, 60  # at most per figure, so that ten runs and Plotly fit in 6 MB
SHARE, RANK, EPOCH = ".3~r", ".1f", ".1f"  # formats of numbers under the pointer, without exponents


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One figure.

    Args:
        name: id of its HTML element.
        title: title above it.
        file: name of the files that it is saved as, without suffix.
        figure: None if the run has nothing to draw.
        frames: the contents of its traces during training: `at` (share of the run), `note`, `y` of each trace, and
            a common `x` if it changes.
        note: text under the title, or in place of the figure.
        rows: number of rows of bars, which sets its height; 0 for the height of an ordinary panel.
    """

    name: str
    title: str
    file: str = ""
    figure: go.Figure | None
    frames: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    rows: int = 0


def _panel(run: Run, index: int, kind: str, figure: go.Figure | None, **options: Any) -> Panel:
    """A panel of one run, the `index`-th on the page."""
    file = file_name(f"{run.label} {kind}")
    return Panel(name=f"{kind}-{index}", title=run.label, file=file, figure=figure, **options)


def _thin_log(count: int) -> list[int]:
    """Indices of a spectrum, evenly spaced on a logarithmic scale."""
    if not count:
        return []
    return sorted({round(i) - 1 for i in np.geomspace(1, count, min(count, POINTS)).tolist()})


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON: four digits, and None in place of those that are not finite."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]


def _axis(title: str, **options: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "showline": True, "exponentformat": "none"} | options


def _log_axis(title: str, least: float, most: float, steps: Sequence[int] = (1,)) -> dict[str, Any]:
    """A logarithmic axis with ticks in plain numbers, at these multiples of the powers of ten."""
    low, high = math.log10(least), math.log10(most)
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    shown = [value for value in values if low - 1e-9 <= math.log10(value) <= high]
    text = [f"{value:,.0f}" if value >= 1 else f"{value:.4g}" for value in shown]
    return _axis(title, type="log", range=[low, high], tickvals=shown, ticktext=text)


def _figure(x: Mapping[str, Any], y: Mapping[str, Any]) -> go.Figure:
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "margin": {"l": 52, "r": 10, "t": 6, "b": 40},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 11},
            "hovermode": "closest",
            "hoverdistance": -1,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": x,
            "yaxis": y,
        }
    )


def _series(name: str, x: Sequence[Any], y: Sequence[Any], color: str, hover: str, **options: Any) -> go.Scatter:
    """A curve, or points; `hover` is the text under the pointer."""
    look = {"mode": "lines", "meta": {"color": color}, "hovertemplate": f"{hover}<extra></extra>"}
    return go.Scatter(name=name, x=list(x), y=list(y), **(look | options))


def _with_crossings(
    x: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Two curves with a point added where they cross, so that the areas between them end there."""
    d = a - b
    cut = np.flatnonzero(d[:-1] * d[1:] < 0)
    share = d[cut] / (d[cut] - d[cut + 1])

    def insert(v: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.insert(v, cut + 1, v[cut] + share * (v[cut + 1] - v[cut]))

    return insert(x), insert(a), insert(b)


def _columns(run: Run, *names: str) -> list[NDArray[np.float64]]:
    """Columns of a run's metrics, thinned out to the same rows."""
    keep = thin(len(run.metrics["step"]), READINGS)
    return [np.array([run.metrics[name][i] for i in keep]) for name in names]


def _line(points: int) -> str:
    return "lines" if points > 1 else "lines+markers"  # a line of one point would be invisible


def ranks_panel(run: Run, index: int, ceiling: float) -> Panel:
    """Both branches' effective rank during training, with the difference shaded.

    Args:
        run: the run.
        index: index of the run on the page.
        ceiling: the largest effective rank on the page; the panels share their axis.
    """
    if not run.metrics.get("step"):
        return _panel(run, index, "ranks", None, note="No reading yet.")
    x, online, target = _columns(run, "epoch", "erank_online", "erank_target")
    figure = _figure(_axis("epoch"), _log_axis("effective rank", 0.95, max(ceiling, 1.9) * 1.1, (1, 2, 5)))
    ends, *logs = _with_crossings(
        x, np.log(online), np.log(target)
    )  # lines are straight on the axis, which is log
    low, high = map(np.exp, logs)
    shades = (
        ("grows", np.maximum(low, high), GROWS, None),
        ("collapses", np.minimum(low, high), COLLAPSES, {"shape": "/", "fgcolor": COLLAPSES, "fgopacity": 0.9}),
    )
    for name, edge, color, pattern in shades:
        hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_trace(go.Scatter(x=_numbers(ends), y=_numbers(low), meta={"shade": True}, **hidden))
        figure.add_trace(
            go.Scatter(
                name=name,
                x=_numbers(ends),
                y=_numbers(edge),
                fill="tonexty",
                fillcolor=f"rgba{(*bytes.fromhex(color[1:]), 0.35)}",
                fillpattern=pattern,
                meta={"shade": True},
                **hidden,
            )
        )
    for name, ranks in (("target", target), ("online", online)):
        hover = f"epoch %{{x:{EPOCH}}}, {name} %{{y:{RANK}}}"
        figure.add_trace(_series(name, _numbers(x), _numbers(ranks), name, hover, mode=_line(len(x))))
    knn = run.results.get("knn")
    note = f"epoch {written(x[-1])}: rank difference {written(target[-1] - online[-1], '+.2f')}" + (
        "" if knn is None else f", kNN {KNN.text(knn)}%"
    )
    return _panel(run, index, "ranks", figure, note=note)


def loss_panel(run: Run, index: int) -> Panel:
    """The loss during training, above the learning rate."""
    if not run.metrics.get("step"):
        return _panel(run, index, "loss", None, note="No reading yet.")
    with_rate = "lr" in run.metrics
    x, loss, *rates = _columns(run, "epoch", "loss", *["lr"] * with_rate)
    figure = _figure(_axis("epoch"), _axis("loss", domain=[0.4 if with_rate else 0, 1], nticks=5))
    mode = _line(len(x))
    for name, values, color, axis in (
        ("loss", loss, "ink", "y"),
        *(("learning rate", v, "lr", "y2") for v in rates),
    ):
        hover = f"epoch %{{x:{EPOCH}}}, {name} %{{y:{SHARE}}}"
        figure.add_trace(_series(name, _numbers(x), _numbers(values), color, hover, mode=mode, yaxis=axis))
    if with_rate:
        figure.update_layout(yaxis2=_axis("rate", domain=[0, 0.28], nticks=3, rangemode="tozero"))
        figure.update_xaxes(anchor="y2")
    return _panel(run, index, "loss", figure, note=f"epoch {written(x[-1])}: loss {written(loss[-1], '.4g')}")


def _frame(
    run: Run, pair: PairSpectrum, note: str, y: list[list[float | None]], x: Sequence[float | None] | None = None
) -> dict[str, Any]:
    step = pair.step or 0
    epoch, at = run.saved.work.clock(step).epoch, (step + 1) / run.steps
    return {"at": round(at, 4), "note": f"epoch {written(epoch)}: {note}", "y": y} | (
        {} if x is None else {"x": x}
    )


def _spectra_kept(run: Run) -> str:
    return "" if run.spectra else "This run kept no spectra." if run.done else "No spectra yet."


def spectra_panel(run: Run, index: int) -> Panel:
    """Both branches' singular values during training, each scaled to its largest."""
    if missing := _spectra_kept(run):
        return _panel(run, index, "spectra", None, note=missing)
    count = len(run.spectra[0].spectrum_target)
    keep = _thin_log(count)
    figure = _figure(
        _log_axis("index of the singular value", 0.9, count * 1.1, (1, 3)),
        _log_axis("share of the largest", 1e-4, 1.2),
    )
    for branch in ("target", "online"):
        hover = f"singular value %{{x}}, {branch} %{{y:{SHARE}}}"
        figure.add_trace(_series(branch, [i + 1 for i in keep], [None] * len(keep), branch, hover))
    frames = []
    for pair in run.spectra:
        scaled = []
        for s in (pair.spectrum_target.tolist(), pair.spectrum_online.tolist()):
            scaled.append(_numbers(s[i] / s[0] if i < len(s) and s[0] and s[i] else math.nan for i in keep))
        online, target = (written(float(rank), ".2f") for rank in (pair.erank_online, pair.erank_target))
        frames.append(_frame(run, pair, f"effective rank {online} online, {target} target", scaled))
    return _panel(run, index, "spectra", figure, frames=frames)


def filter_panel(run: Run, index: int) -> Panel:
    """Measured filter and transfer against the target's singular values, as shares of `largest_passed`."""
    if missing := _spectra_kept(run):
        return _panel(run, index, "filter", None, note=missing)
    figure = _figure(
        _log_axis("singular value of the target", 1e-3, 1.4),
        _log_axis("share of the largest transfer", 6e-3, 20),
    )
    hollow = {"size": 5, "symbol": "circle-open"}
    for name, color, marker in (("measured gain", "muted", hollow), ("transfer", "online", {"size": 5})):
        hover = f"singular value %{{x:{SHARE}}}, {name} %{{y:{SHARE}}}"
        figure.add_trace(_series(name, [], [], color, hover, mode="markers", marker=marker))
    frames = []
    for pair in run.spectra:
        s, measured, transfer = (v.tolist() for v in (pair.spectrum_target, pair.measured_filter, pair.transfer))
        top, keep = largest_passed(pair), _thin_log(len(transfer))
        # A logarithmic axis cannot show a direction that does not pass at all.
        points = [_numbers(g[i] / top if g[i] > 0 else math.nan for i in keep) for g in (measured, transfer)]
        x = _numbers(s[i] / s[0] for i in keep)
        frames.append(_frame(run, pair, filter_scores(pair) if transfer else "the target is zero", points, x))
    return _panel(run, index, "filter", figure, frames=frames)


def alignment_panel(run: Run, index: int) -> Panel:
    """How far each of the target's eigenvectors is also an eigenvector of the online branch."""
    if missing := _spectra_kept(run):
        return _panel(run, index, "alignment", None, note=missing)
    count = max(len(pair.eigenspace_alignment) for pair in run.spectra)
    figure = _figure(
        _log_axis("index of the eigenvector", 0.9, max(count, 1) * 1.1, (1, 3)),
        _axis("eigenspace alignment", range=[0, 1.03]),
    )
    hover = f"eigenvector %{{x}}, alignment %{{y:{SHARE}}}"
    figure.add_trace(_series("alignment", [], [], "target", hover, mode="lines+markers", marker={"size": 4}))
    frames = []
    for pair in run.spectra:
        values = pair.eigenspace_alignment.tolist()
        keep = _thin_log(len(values))
        mean = f"mean {sum(values[:512]) / len(values[:512]):.2f}" if values else "the target is zero"
        frames.append(_frame(run, pair, mean, [_numbers(values[i] for i in keep)], [i + 1 for i in keep]))
    return _panel(run, index, "alignment", figure, frames=frames)


def bars_panel(runs: Sequence[Run], name: str, title: str, columns: Mapping[str, tuple[Column, str]]) -> Panel:
    """Results of all runs as horizontal bars.

    Args:
        runs: the runs.
        name: name of the panel and of its files.
        title: title above it.
        columns: series -> its column of the results and the name of its colour.
    """
    scored = [run for run in runs if any(run.results.get(c.key) is not None for c, _ in columns.values())]
    if not scored:
        note = "No run has these results." if all(run.done for run in runs) else "No run has these results yet."
        return Panel(name=name, title=title, figure=None, note=note)
    labels = [run.label for run in scored]
    shown = [html.escape(label, quote=False) for label in labels]  # Plotly reads text as markup
    names = _axis("", autorange="reversed", type="category", tickvals=labels, ticktext=shown)
    figure = _figure(_axis(title, separatethousands=True), names)
    for series, (column, color) in columns.items():
        figure.add_trace(
            go.Bar(
                name=series,
                orientation="h",
                x=_numbers(column.scaled(run.results) for run in scored),
                y=labels,
                hovertext=shown,
                texttemplate=f"%{{x:{column.form}}}",
                hovertemplate=f"%{{hovertext}}: {series} %{{x:{column.form}}}<extra></extra>",
                meta={"color": color},
            )
        )
    margin = {"l": min(14 + 6 * max(map(len, labels)), 170)}
    figure.update_layout(barmode="group", bargap=0.25, margin=margin, hoverdistance=20)
    figure.update_layout(showlegend=len(columns) > 1)
    file = file_name(f"{runs[0].label} {name}") if len(runs) == 1 else name
    return Panel(name=name, title=title, file=file, figure=figure, rows=len(scored) * len(columns))
