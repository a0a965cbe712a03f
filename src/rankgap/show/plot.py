"""Both branches' ranks as a figure, from a monitor, a list of readings or a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rankgap.errors import UserError
from rankgap.run.folder import RunFolder
from rankgap.show.figures import RankTrace, ranks_figure
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading, readings


def plot(source: RankMonitor | Sequence[Reading] | str | Path, path: str | Path | None = None) -> Figure:
    """Draw both branches' effective ranks over the steps.

    Args:
        source: a `RankMonitor`, its `history`, or a run folder.
        path: the picture's file (.png, .pdf, .svg); None saves no file.

    Returns:
        A matplotlib figure, which notebooks display.

    Raises:
        UserError: there are no readings yet, or the folder holds no run.
    """
    name = "ranks"
    if isinstance(source, str | Path):
        folder = RunFolder(Path(source))
        name, source = folder.saved().title, readings(folder.metrics())
    history = source.history if isinstance(source, RankMonitor) else source
    if not history:
        raise UserError("there are no readings to plot yet: train for at least one step")
    return ranks_figure([RankTrace.of(name, history)], path, x_label="step")
