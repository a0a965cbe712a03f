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
from rankgap.show.columns import ERANK_ONLINE, ERANK_TARGET, RANK_DIFFERENCE, SPEED
from rankgap.show.terminal import console
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40  # readings in a line
_SPEED_OVER = 30  # updates over which the speed is measured


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
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


def live_view(folder: RunFolder, images_per_second: float | None) -> RenderableType:
    """The state of a run: progress, loss, both ranks and their difference, alarms.

    Args:
        folder: the run's folder.
        images_per_second: the speed; None if it is not known yet.

    Raises:
        UserError: the folder holds no run.
    """
    saved, metrics = folder.saved(), folder.metrics()
    done = int(metrics["step"][-1]) + 1 if metrics.get("step") else 0
    speed = "" if images_per_second is None else f", {SPEED.text(images_per_second)} {SPEED.heading}"
    parts: list[RenderableType] = [
        Text(f"{saved.title} on {shown(saved.run.data)}", style="bold"),
        Text(f"{done:,} of {saved.work.steps:,} steps{speed}"),
        Padding(ProgressBar(total=saved.work.steps, completed=done, width=_WIDTH + 20), 0),
    ]
    if not done:
        return Group(*parts, Text("no reading yet", style="dim"))
    table = Table.grid(padding=(0, 2))
    for label, name, form in (
        ("loss", "loss", ".4f"),
        (ERANK_TARGET.heading, ERANK_TARGET.key, ".2f"),
        (ERANK_ONLINE.heading, ERANK_ONLINE.key, ".2f"),
        (RANK_DIFFERENCE.heading, RANK_DIFFERENCE.key, "+.2f"),
    ):
        table.add_row(label, Text(sparkline(metrics[name]), style="cyan"), f"{metrics[name][-1]:{form}}")
    found = alarms(readings(metrics))
    said = [Text(f"alarm: {alarm}", style="yellow") for alarm in found] or [Text("no alarm", style="green")]
    return Group(*parts, table, *said)


def follow(folder: RunFolder, every: float) -> None:
    """Show a run until it has results, or until Ctrl-C.

    Args:
        folder: the run's folder.
        every: seconds between two updates.

    Raises:
        UserError: the folder holds no run.
    """
    batch = folder.saved().work.batch_size
    seen: list[tuple[float, float]] = []  # time, and the last step read by then
    speed: float | None = None
    with Live(live_view(folder, None), console=console, auto_refresh=False) as live:
        while not folder.results():
            time.sleep(every)
            last = folder.metrics().get("step") or [0.0]
            seen = [*seen, (time.monotonic(), last[-1])][-_SPEED_OVER:]
            elapsed, steps = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
            speed = steps * batch / elapsed if elapsed and steps else speed
            live.update(live_view(folder, speed), refresh=True)
        live.update(live_view(folder, folder.results().get(SPEED.key)), refresh=True)
