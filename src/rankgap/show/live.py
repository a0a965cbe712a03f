"""A live view of a run in the terminal, while it trains on this machine or on another that shares the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankgap.data.names import shown
from rankgap.run.folder import RunFolder
from rankgap.show.columns import ERANK_ONLINE, ERANK_TARGET, RANK_DIFFERENCE, Column
from rankgap.show.pace import status_line
from rankgap.show.status import Follower, status
from rankgap.show.terminal import console, say
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVES = (
    (Column("loss", "loss"), ".4f"),
    (ERANK_TARGET, ".2f"),
    (ERANK_ONLINE, ".2f"),
    (RANK_DIFFERENCE, "+.2f"),
)
_GAP = 2  # columns between a curve and its neighbours


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve in one line of text, from its smallest to its largest value; values that are not finite are blank.

    Example:
        >>> sparkline([0, 1, 2, 3])
        '▁▃▆█'
    """
    count = min(width, len(values))
    picked = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    finite = [v for v in picked if math.isfinite(v)]
    low, span = (min(finite), (max(finite) - min(finite)) or 1.0) if finite else (0.0, 1.0)
    return "".join(
        _BLOCKS[round((v - low) / span * (len(_BLOCKS) - 1))] if math.isfinite(v) else " " for v in picked
    )


def live_view(folder: RunFolder, images_per_second: float | None, *, width: int | None = None) -> RenderableType:
    """The state of a run: progress, time, loss, both ranks and their difference, alarms.

    Args:
        folder: the run's folder.
        images_per_second: the speed; None if it is not known yet.
        width: columns to fill; by default the terminal's.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    now = status(folder, images_per_second)
    saved, metrics = now.saved, now.metrics
    width = width or console.width
    parts: list[RenderableType] = [
        Text(f"{saved.title} on {shown(saved.run.data)}", style="bold"),
        Text(now.progress),
        Padding(ProgressBar(total=saved.work.steps, completed=now.done, width=width), 0),
        Text(now.times),
    ]
    ending = [Text(text, style=style) for text, style in now.ending]
    if not metrics.get("step"):
        return Group(*parts, Text("no reading yet", style="dim"), *ending)
    curves = [(c.heading, metrics[c.key], form) for c, form in _CURVES]
    last = [f"{values[-1]:{form}}" for _, values, form in curves]
    room = width - max(len(name) for name, _, _ in curves) - max(map(len, last)) - 2 * _GAP
    table = Table.grid(padding=(0, _GAP))
    for (name, values, _), number in zip(curves, last, strict=True):
        table.add_row(name, Text(sparkline(values, max(room, 1)), style="cyan"), number)
    found = alarms(readings(metrics), steps=saved.work.steps)
    said = [Text(f"alarm: {alarm}", style="yellow") for alarm in found] or [Text("no alarm", style="green")]
    return Group(*parts, table, *said, *ending)


def follow(folder: RunFolder, every: float) -> None:
    """Show a run until it ends, or until Ctrl-C.

    A terminal shows its current state. A file or a pipe gets one line per reading, starting with the first.

    Args:
        folder: the run's folder.
        every: seconds between two updates.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    show = _Screen(folder) if console.is_terminal else _Lines(folder)
    follower = Follower(folder)
    with show:
        while True:
            now = follower.look()
            show.update(now.images_per_second)
            if now.end is not None:
                return
            time.sleep(every)


class _Screen:
    """Keeps a run's view up to date in a terminal."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> None:
        self.live.start()

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def update(self, images_per_second: float | None) -> None:
        self.live.update(live_view(self.folder, images_per_second), refresh=True)


class _Lines:
    """Prints a run's readings as they arrive, its alarms and its end."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.read = folder, 0
        self.said: set[str] = set()

    def __enter__(self) -> None:
        saved = self.folder.saved()
        say((f"{saved.title} on {saved.run.data}", "bold"))

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, images_per_second: float | None) -> None:
        metrics, work = self.folder.metrics(), self.folder.saved().work
        count = len(metrics.get("step", []))
        for i in range(min(self.read, count), count):
            row = {name: values[i] for name, values in metrics.items()}
            speed = images_per_second if i == count - 1 else None  # the current speed
            say(
                f"step {int(row['step']) + 1:,}  {status_line(int(row['step']) + 1, row, work, speed)}", wrap=False
            )
        self.read = count
        lines = [f"alarm: {alarm}" for alarm in alarms(readings(metrics), steps=work.steps)]
        lines += [text for text, _ in status(self.folder, None).ending]
        for line in lines:
            if line not in self.said:
                say(line, wrap=False)
                self.said.add(line)
