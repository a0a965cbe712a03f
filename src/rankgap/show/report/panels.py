"""The figures of the report, one function each: from a run's files to Plotly's traces and the slider's frames.

Numbers are plain lists, not arrays: Plotly would pack arrays in base64, and other programs read the page too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from rankgap.run.folder import RunFolder
from rankgap.run.saved import SavedRun
from rankgap.show.colours import COLLAPSES, GROWS
from rankgap.show.columns import KNN
from rankgap.show.figures import largest_passed
from rankgap.spectra.pair import PairSpectrum
from rankgap.watch.doctor import Diagnosis, alarms
from rankgap.watch.reading import readings

READINGS, FRAMES, POINTS = 400, 24, 60  # at most per figure, so that ten runs and Plotly fit in 6 MB


@dataclass(frozen=True)
class Run:
    """The parts of a run that a report shows; each is read once, and may be missing.

    Args:
        folder: the run folder.
        label: a name that no other run on the page has.
    """

    folder: RunFolder
    label: str

    @cached_property
    def saved(self) -> SavedRun:
        """The contents of `config.yaml`."""
        return self.folder.saved()

    @cached_property
    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv`; empty before the first reading."""
        return self.folder.metrics()

    @cached_property
    def spectra(self) -> list[PairSpectrum]:
        """The records during training, thinned out."""
        found = self.folder.spectra()
        return [found[i] for i in thin(len(found), FRAMES)]

    @cached_property
    def results(self) -> dict[str, Any]:
        """The contents of `results.json`, or the newest reading of a run that has no results yet."""
        return self.folder.results() or self.folder.last_reading()

    @cached_property
    def alarms(self) -> list[Diagnosis]:
        """The alarms that the run's readings raise."""
        return alarms(readings(self.metrics))

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.saved.work.steps

    @property
    def state(self) -> str:
        """How far the run has come."""
        if self.folder.results():
            return "done"
        done = int(self.metrics["step"][-1]) + 1 if self.metrics.get("step") else 0
        return f"{done:,} of {self.steps:,} steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One figure.

    Args:
        name: name of its element and its CSV.
        title: title above it.
        figure: None if the run has nothing to draw.
        frames: the contents of its traces during training: `at` (share of the run), `note`, `y`, and `x` if it
            changes.
        note: text under the title, or in place of the figure.
        rows: number of rows of bars, which sets its height; 0 for the height of an ordinary panel.
    """

    name: str
    title: str
    figure: go.Figure | None
    frames: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    rows: int = 0


def thin(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, the first and the last among them.

    Example:
        >>> thin(7, 3), thin(2, 5)
        ([0, 3, 6], [0, 1])
    """
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most)).tolist()})


def _thin_log(count: int) -> list[int]:
    """Indices of a spectrum, evenly spaced on a logarithmic scale."""
    if not count:
        return []
    return sorted({round(i) - 1 for i in np.geomspace(1, count, min(count, POINTS)).tolist()})


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON: four digits, and None in place of those that are not finite."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]


def _figure(x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> go.Figure:
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "margin": {"l": 52, "r": 10, "t": 6, "b": 40},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 11},
            "hovermode": "closest",
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": x}, "type": "log" if log_x else "linear", "showline": True},
            "yaxis": {"title": {"text": y}, "type": "log" if log_y else "linear", "showline": True},
        }
    )


def _series(
    name: str, x: Sequence[float | None], y: Sequence[float | None], color: str, **options: Any
) -> go.Scatter:
    return go.Scatter(name=name, x=list(x), y=list(y), meta={"color": color}, **({"mode": "lines"} | options))


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


def ranks_panel(run: Run, index: int, ceiling: float) -> Panel:
    """Both branches' effective rank during training, with the difference shaded.

    Args:
        run: the run.
        index: index of the run on the page.
        ceiling: the largest effective rank on the page; the panels share their axis.
    """
    metrics, title = run.metrics, run.label
    if not metrics.get("step"):
        return Panel(name=f"ranks-{index}", title=title, figure=None, note="No reading yet.")
    keep = thin(len(metrics["step"]), READINGS)
    x, online, target = (
        np.array([metrics[name][i] for i in keep]) for name in ("epoch", "erank_online", "erank_target")
    )
    figure = _figure("epoch", "effective rank", log_y=True)
    figure.update_yaxes(range=[-0.02, math.log10(ceiling * 1.1)], dtick="D2")
    ends, low, high = _with_crossings(x, online, target)
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
        mode = "lines+markers" if len(x) < 2 else "lines"
        figure.add_trace(_series(name, _numbers(x), _numbers(ranks), name, mode=mode))
    knn = run.results.get("knn")
    note = f"rank difference {target[-1] - online[-1]:+.2f} at the last reading" + (
        "" if knn is None else f", kNN {KNN.text(knn)}%"
    )
    return Panel(name=f"ranks-{index}", title=title, figure=figure, note=note)


def _frame(run: Run, pair: PairSpectrum, note: str, y: list[Any], x: list[Any] | None = None) -> dict[str, Any]:
    step = pair.step or 0
    epoch, at = run.saved.work.clock(step).epoch, (step + 1) / run.steps
    return {"at": round(at, 4), "note": f"epoch {epoch:.1f}: {note}", "y": y} | ({"x": x} if x else {})


def _no_spectra(name: str, run: Run) -> Panel:
    return Panel(name=name, title=run.label, figure=None, note="This run kept no spectra.")


def spectra_panel(run: Run, index: int) -> Panel:
    """Both branches' singular values during training, each scaled to its largest."""
    name = f"spectra-{index}"
    if not run.spectra:
        return _no_spectra(name, run)
    keep = _thin_log(len(run.spectra[0].spectrum_target))
    figure = _figure("index of the singular value", "share of the largest", log_x=True, log_y=True)
    figure.update_yaxes(range=[-4, 0.1], exponentformat="power", dtick=1)
    for branch in ("target", "online"):
        figure.add_trace(_series(branch, [i + 1 for i in keep], [None] * len(keep), branch))
    frames = []
    for pair in run.spectra:
        scaled = []
        for s in (pair.spectrum_target.tolist(), pair.spectrum_online.tolist()):
            scaled.append(_numbers(s[i] / s[0] if i < len(s) and s[0] and s[i] else math.nan for i in keep))
        ranks = f"effective rank {pair.erank_online:.2f} online, {pair.erank_target:.2f} target"
        frames.append(_frame(run, pair, ranks, scaled))
    return Panel(name=name, title=run.label, figure=figure, frames=frames)


def filter_panel(run: Run, index: int) -> Panel:
    """Measured filter and transfer against the target's singular values, as shares of `largest_passed`."""
    name = f"filter-{index}"
    if not run.spectra:
        return _no_spectra(name, run)
    figure = _figure("singular value of the target", "share passed on", log_x=True, log_y=True)
    figure.update_xaxes(exponentformat="power", dtick=1, range=[-3, 0.15])
    figure.update_yaxes(exponentformat="power", dtick=1, range=[-2.2, 1.3])
    hollow = {"size": 5, "symbol": "circle-open"}
    figure.add_trace(_series("measured gain", [], [], "muted", mode="markers", marker=hollow))
    figure.add_trace(_series("transfer", [], [], "online", mode="markers", marker={"size": 5}))
    frames = []
    for pair in run.spectra:
        s, measured, transfer = (v.tolist() for v in (pair.spectrum_target, pair.measured_filter, pair.transfer))
        top, keep = largest_passed(measured, transfer), _thin_log(len(transfer))
        # A logarithmic axis cannot show a direction that does not pass at all.
        points = [_numbers(g[i] / top if g[i] > 0 else math.nan for i in keep) for g in (measured, transfer)]
        x = _numbers(s[i] / s[0] for i in keep)
        scores = f"low-pass score {pair.low_pass_score:+.2f}, of the transfer {pair.transfer_score:+.2f}"
        frames.append(_frame(run, pair, scores if transfer else "the target is zero", points, [x, x]))
    return Panel(name=name, title=run.label, figure=figure, frames=frames)


def alignment_panel(run: Run, index: int) -> Panel:
    """How far each of the target's eigenvectors is also an eigenvector of the online branch."""
    name = f"alignment-{index}"
    if not run.spectra:
        return _no_spectra(name, run)
    figure = _figure("index of the eigenvector", "eigenspace alignment", log_x=True)
    figure.update_yaxes(range=[0, 1.03])
    figure.add_trace(_series("alignment", [], [], "target", mode="lines+markers", marker={"size": 4}))
    frames = []
    for pair in run.spectra:
        values = pair.eigenspace_alignment.tolist()
        keep = _thin_log(len(values))
        mean = f"mean {sum(values[:512]) / len(values[:512]):.2f}" if values else "the target is zero"
        frames.append(_frame(run, pair, mean, [_numbers(values[i] for i in keep)], [[i + 1 for i in keep]]))
    return Panel(name=name, title=run.label, figure=figure, frames=frames)


def bars_panel(runs: Sequence[Run], name: str, title: str, columns: Mapping[str, tuple[str, str, float]]) -> Panel:
    """Results of all runs as horizontal bars.

    Args:
        runs: the runs.
        name: name of the panel.
        title: title above it.
        columns: series -> key in `results.json`, name of a colour, factor.
    """
    figure = _figure(title, "")
    scored = [run for run in runs if any(run.results.get(key) is not None for key, _, _ in columns.values())]
    if not scored:
        return Panel(name=name, title=title, figure=None, note="No run has these results yet.")
    for series, (key, color, factor) in columns.items():
        values = [run.results.get(key) for run in scored]
        figure.add_trace(
            go.Bar(
                name=series,
                orientation="h",
                x=_numbers(math.nan if v is None else factor * v for v in values),
                y=[run.label for run in scored],
                texttemplate="%{x:.3~s}" if factor == 1 else "%{x:.1f}",
                meta={"color": color},
            )
        )
    longest = max(len(run.label) for run in scored)
    figure.update_layout(barmode="group", bargap=0.25, margin={"l": min(14 + 6 * longest, 170)})
    figure.update_layout(showlegend=len(columns) > 1)
    figure.update_yaxes(autorange="reversed", type="category", title=None)
    return Panel(name=name, title=title, figure=figure, rows=len(scored))
