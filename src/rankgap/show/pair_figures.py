"""Static pictures of how a run's branches relate: eigenspaces, eigenvalues and measured filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from rankgap.show.colours import GREY, ONLINE, TARGET
from rankgap.show.columns import written
from rankgap.show.figures import DPI, lay_out, log_ticks, plain, save
from rankgap.spectra.pair import PairSpectrum


def alignment_figure(runs: Mapping[str, PairSpectrum], path: str | Path) -> Figure:
    """Eigenspace alignment, one panel per run (RDM, figure 3).

    Args:
        runs: title -> record of the run's branches.
        path: the picture's file (.png, .pdf, .svg); its folder is created if there is none.
    """
    figure, panels = _panel_row(
        runs,
        1,
        "Eigenspace alignment",
        "At 1, this eigenvector of the target's correlation is also one of the online branch's.\n"
        "The line is the mean.",
    )
    for panel, (name, pair) in zip(panels[0], runs.items(), strict=True):
        values = pair.eigenspace_alignment[:512].numpy()
        panel.plot(np.arange(1, len(values) + 1), values, ".", color=TARGET, markersize=4)
        panel.axhline(values.mean(), color=GREY, linewidth=1)
        panel.set_title(f"{name}: mean {values.mean():.2f}", size=9, weight="bold", loc="left", parse_math=False)
        panel.set_ylim(0, 1.04)
        panel.set_xscale("log")
        log_ticks(panel.xaxis)
        panel.set_xlabel("index of the eigenvector", size=8, color=GREY)
    panels[0][0].set_ylabel("eigenspace alignment", size=8, color=GREY)
    return save(figure, path)


def largest_passed(pair: PairSpectrum) -> float:
    """The unit in which filters are drawn: the largest transfer, or the largest gain if no transfer is above 0.

    Only the directions that hold 99% of the target's energy count. Along the others, leaked energy is divided by
    almost zero.
    """
    energy = pair.spectrum_target[: len(pair.transfer)].square()
    strong = int((energy.cumsum(0) < 0.99 * energy.sum()).sum()) + 1
    transfer, gains = (max(0.0, *v[:strong].tolist(), 0.0) for v in (pair.transfer, pair.measured_filter))
    return float(transfer or gains)


def filter_scores(pair: PairSpectrum) -> str:
    """Both scores of a measured filter, in words."""
    score, of_transfer = (written(float(v), "+.2f") for v in (pair.low_pass_score, pair.transfer_score))
    return f"low-pass score {score}, of the transfer {of_transfer}"


def filters_figure(runs: Mapping[str, PairSpectrum], path: str | Path) -> Figure:
    """Eigenvalues of both branches above, measured filter and transfer below, one column per run (RDM, figure 4).

    Args:
        runs: title -> record of the run's branches.
        path: the picture's file (.png, .pdf, .svg); its folder is created if there is none.
    """
    figure, (above, below) = _panel_row(
        runs,
        2,
        "Eigenvalues and measured filters",
        "Above: eigenvalues of both branches' correlation, as shares of their sum. Below: how much the online\n"
        "branch passes on along each direction of the target (transfer), and the same with what leaks in from\n"
        "other directions (measured gain). Points that rise to the right are a low-pass filter.",
    )
    for top, bottom, (name, pair) in zip(above, below, runs.items(), strict=True):
        for branch, s, colour in (
            ("target", pair.spectrum_target, TARGET),
            ("online", pair.spectrum_online, ONLINE),
        ):
            energy = (s / s.norm()).square().numpy()
            # The paper draws the eigenvalues that hold 99.99%.
            held = int(np.searchsorted(energy.cumsum(), 0.9999)) + 1
            top.plot(np.arange(1, held + 1), energy[:held], color=colour, linewidth=1.5, label=branch)
        top.set_title(name, size=9, weight="bold", loc="left", parse_math=False)
        top.set_xlabel("index of the eigenvalue", size=8, color=GREY)
        s = pair.spectrum_target[: len(pair.measured_filter)]
        largest = largest_passed(pair)
        for gains, label, look in (
            (pair.measured_filter, "measured gain", {"color": GREY, "markerfacecolor": "none"}),
            (pair.transfer, "transfer", {"color": ONLINE}),
        ):
            shown = gains > 0
            x, y = s[shown] / s[0], gains[shown] / largest
            bottom.plot(x.numpy(), y.numpy(), "o", markersize=3, label=label, **look)
        bottom.set_title(filter_scores(pair), size=8, color=GREY, loc="left")
        bottom.set_xlabel("singular value of the target", size=8, color=GREY)
        for panel, least in ((top, 0.0), (bottom, 1e-3)):  # gains below a thousandth are noise about zero
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.yaxis.set_minor_formatter(NullFormatter())
            lowest = max(panel.dataLim.y0, least)
            panel.set_ylim(bottom=10 ** math.floor(math.log10(lowest)))  # a whole decade, so that it has labels
    above[0].set_ylabel("share of the sum", size=8, color=GREY)
    below[0].set_ylabel("share of the largest transfer", size=8, color=GREY)
    for panel in (above[0], below[0]):
        panel.legend(frameon=False, fontsize=8)
    return save(figure, path)


def _panel_row(
    runs: Mapping[str, PairSpectrum], rows: int, title: str, reading: str
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure with its header and rows x runs of plain axes."""
    assert runs, "no run to draw"
    figure = Figure(figsize=(2.75 * len(runs) + 0.6, 2.3 * rows + 1.0), dpi=DPI)
    lay_out(figure, title, reading, left=0.62, right=0.15, bottom=0.48, above=0.25, wspace=0.3, hspace=0.5)
    panels: NDArray[np.object_] = figure.subplots(rows, len(runs), squeeze=False)
    for panel in panels.ravel():
        plain(panel)
    return figure, panels
