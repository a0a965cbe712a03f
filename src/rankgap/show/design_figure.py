"""The picture of a design: its gains, the spectrum before and after filtering, and the linear flow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from rankgap.show.colours import GREY, ONLINE, TARGET
from rankgap.show.figures import DPI, lay_out, log_ticks, plain, save

if TYPE_CHECKING:
    from rankgap.theory.design import Assessment


def design_figure(found: Assessment, path: str | Path) -> Figure:
    """Draw the gains, spectra and flow of a pair of filters side by side.

    Args:
        found: the pair, assessed.
        path: the picture's file (.png, .pdf, .svg); its folder is created if there is none.
    """
    figure = Figure(figsize=(10, 4.1), dpi=DPI)
    reading = (
        "Left: what each branch multiplies a singular value by. Middle: the spectrum before and after.\n"
        "Right: both ranks in the linear model. Without a filter, the alignment alone loses dimensions."
    )
    lay_out(figure, f"Design: {found.title}", reading, left=0.6, right=1, bottom=0.53, above=0.42, wspace=0.26)
    gains, spectra, flow = figure.subplots(1, 3)
    for axes in (gains, spectra, flow):
        plain(axes)
    _draw_gains(gains, found)
    _draw_spectra(spectra, found)
    _draw_flow(flow, found)
    return save(figure, path)


def _draw_gains(axes: Axes, found: Assessment) -> None:
    x = found.reference.x
    for label, g, colour in (("target", found.gain_target, TARGET), ("online", found.gain_online, ONLINE)):
        shown = g > 0
        axes.plot(*_points(x[shown], g[shown]), color=colour, linewidth=1.8, label=label)
    axes.set_title("gain", size=10, weight="bold", loc="left")
    axes.set_xlabel("singular value, s / sqrt(N)", size=8, color=GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if high < 1000 * low:
            log_ticks(axis)
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8)


def _draw_spectra(axes: Axes, found: Assessment) -> None:
    x = found.reference.x
    drawn = [("Z, before", x, GREY, found.erank, "--")]
    for side, g, colour, erank in (
        ("target", found.gain_target, TARGET, found.erank_target),
        ("online", found.gain_online, ONLINE, found.erank_online),
    ):
        if side in found.gains:
            drawn.append((side, x * g, colour, erank, "-"))
    for label, s, colour, erank, style in drawn:
        energy = s.sort(descending=True).values.square()
        energy = energy[energy > 0] / energy.sum()
        place = np.arange(1, len(energy) + 1)
        axes.plot(place, energy.numpy(), style, color=colour, linewidth=1.6, label=f"{label}: erank {erank:.1f}")
    axes.set_title("eigenvalues, share of the sum", size=10, weight="bold", loc="left")
    axes.set_xlabel("index of the eigenvalue", size=8, color=GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-12))
    log_ticks(axes.xaxis)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _draw_flow(axes: Axes, found: Assessment) -> None:
    lines = (
        ("no filter", found.baseline.times, found.baseline.erank_online, GREY, "--"),
        ("target", found.flow.times, found.flow.erank_target, TARGET, "-"),
        ("online", found.flow.times, found.flow.erank_online, ONLINE, "-"),
    )
    for label, times, erank, colour, style in lines:
        axes.plot(*_points(times / found.unit, erank), style, color=colour, linewidth=1.6, label=label)
    last = float(found.flow.times[-1]) / found.unit
    if found.dies_out:
        axes.plot(last, float(found.flow.erank_online[-1]), "x", color=ONLINE, markersize=7)
        axes.annotate(
            "directions die out",
            (last, float(found.flow.erank_online[-1])),
            xytext=(8, 0),
            textcoords="offset points",
            size=8,
            color=ONLINE,
            va="center",
        )
    axes.set_ylim(0, 1.08 * max(float(erank.max()) for _, _, erank, _, _ in lines))
    ends = sorted((float(erank[-1]), label, colour) for label, _, erank, colour, _ in lines)
    height, gap = -1.0, 0.075 * axes.get_ylim()[1]
    for value, label, colour in ends:  # from below, each label clear of the one under it
        height = max(value, height + gap)
        axes.annotate(
            f"{label} {value:.1f}",
            (1.02, height),
            xycoords=("axes fraction", "data"),
            size=8,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axes.set_title("effective rank in the linear flow", size=10, weight="bold", loc="left")
    axes.set_xlabel("time, in units of the encoder's energy", size=8, color=GREY)


def _points(x: Tensor, y: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return x.numpy(), y.numpy()
