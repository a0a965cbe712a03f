"""A live view of a run in the terminal, while it trains here or on another machine's disk."""

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

from rankgap.run.folder import RunFolder
from rankgap.run.presets import Work
from rankgap.show.terminal import console
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40  # readings in a line


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """A curve in one line of text, from its least to its greatest value; what is not finite is a blank.

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


def view(folder: RunFolder, images_per_second: float | None) -> RenderableType:
    """What a run has so far: progress, loss, both ranks and their difference, alarms.

    Args:
        folder: the run's.
        images_per_second: where it is known.

    Raises:
        UserError: no run.
    """
    config, metrics = folder.config(), folder.metrics()
    steps = Work(**config["work"]).steps
    done = int(metrics["step"][-1]) + 1 if metrics.get("step") else 0
    rate = "" if images_per_second is None else f", {images_per_second:,.0f} images/s"
    parts: list[RenderableType] = [
        Text(f"{config['title']} on {config['run']['data']}", style="bold"),
        Text(f"{done:,} of {steps:,} steps{rate}"),
        Padding(ProgressBar(total=steps, completed=done, width=_WIDTH + 20), 0),
    ]
    if not done:
        return Group(*parts, Text("no reading yet", style="dim"))
    table = Table.grid(padding=(0, 2))
    for label, name, form in (
        ("loss", "loss", ".4f"),
        ("erank target", "erank_target", ".2f"),
        ("erank online", "erank_online", ".2f"),
        ("rank difference", "rank_difference", "+.2f"),
    ):
        table.add_row(label, Text(sparkline(metrics[name]), style="cyan"), f"{metrics[name][-1]:{form}}")
    parts.append(table)
    found = alarms(readings(metrics))
    parts += [Text(f"alarm: {alarm}", style="yellow") for alarm in found] or [Text("no alarm", style="green")]
    return Group(*parts)


def watch(folder: RunFolder, every: float) -> None:
    """Show a run until it has results, or until Ctrl-C.

    Args:
        folder: the run's.
        every: seconds between two looks.

    Raises:
        UserError: no run.
    """
    batch = folder.config()["work"]["batch_size"]
    seen: list[tuple[float, float]] = []
    rate: float | None = None
    with Live(view(folder, None), console=console, auto_refresh=False) as live:
        while not folder.results():
            time.sleep(every)
            last = folder.metrics().get("step") or [0.0]
            seen = [*seen, (time.monotonic(), last[-1])][-30:]
            elapsed, steps = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
            rate = steps * batch / elapsed if elapsed and steps else rate
            live.update(view(folder, rate), refresh=True)
        live.update(view(folder, folder.results().get("images_per_second")), refresh=True)
