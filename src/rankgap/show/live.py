"""A live view of a run in the terminal, while it trains on this machine or on another that shares the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankgap.data.names import shown
from rankgap.run.beat import Beat, last_beat
from rankgap.run.folder import RunFolder
from rankgap.show.columns import ERANK_ONLINE, ERANK_TARGET, RANK_DIFFERENCE, SPEED, Column
from rankgap.show.pace import Pace, duration, status_line, time_left
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
    saved, metrics, beat = folder.saved(), folder.metrics(), last_beat(folder)
    width = width or console.width
    done = _done(metrics, beat)
    speed = "" if images_per_second is None else f", {SPEED.text(images_per_second)} {SPEED.heading}"
    left = None if _end(folder, beat) else time_left(saved.work, done, images_per_second)
    times = [f"{duration(beat.seconds)} so far"] if beat else []
    times += [f"about {duration(left)} left"] if left else []
    parts: list[RenderableType] = [
        Text(f"{saved.title} on {shown(saved.run.data)}", style="bold"),
        Text(f"{done:,} of {saved.work.steps:,} steps{speed}"),
        Padding(ProgressBar(total=saved.work.steps, completed=done, width=width), 0),
        Text(", ".join(times)),
    ]
    if not metrics.get("step"):
        return Group(*parts, Text("no reading yet", style="dim"), *_ending(folder, beat))
    curves = [(c.heading, metrics[c.key], form) for c, form in _CURVES]
    last = [f"{values[-1]:{form}}" for _, values, form in curves]
    room = width - max(len(name) for name, _, _ in curves) - max(map(len, last)) - 2 * _GAP
    table = Table.grid(padding=(0, _GAP))
    for (name, values, _), number in zip(curves, last, strict=True):
        table.add_row(name, Text(sparkline(values, max(room, 1)), style="cyan"), number)
    found = alarms(readings(metrics), steps=saved.work.steps)
    said = [Text(f"alarm: {alarm}", style="yellow") for alarm in found] or [Text("no alarm", style="green")]
    return Group(*parts, table, *said, *_ending(folder, beat))


def _done(metrics: Mapping[str, Sequence[float]], beat: Beat | None) -> int:
    """Steps done, according to the last reading or the last heartbeat."""
    read = int(metrics["step"][-1]) + 1 if metrics.get("step") else 0
    return max(read, beat.step if beat else 0)


def _end(folder: RunFolder, beat: Beat | None) -> tuple[str, str] | None:
    """How a run ended, as a sentence and its style; None while it is running."""
    if beat is None:  # a run of an earlier version
        return ("finished", "green") if folder.results() else None
    now = time.time()
    again = f"; resume with: rankgap train --out {folder.path} --resume" if folder.checkpoint.is_file() else ""
    if (death := beat.death(now)) is not None:
        return f"dead: {death}, last seen {duration(now - beat.time)} ago{again}", "red"
    return {
        "finished": ("finished", "green"),
        "interrupted": (f"interrupted at step {beat.step:,}{again}", "yellow"),
        "failed": (f"stopped by an error at step {beat.step:,}{again}", "red"),
    }.get(beat.state)


def _ending(folder: RunFolder, beat: Beat | None) -> list[Text]:
    """A line about how a run ended, or about what it does besides training."""
    if (end := _end(folder, beat)) is not None:
        verdict = folder.verdict() if end[0] == "finished" else None
        return [*([Text(f"verdict: {verdict}")] if verdict else []), Text(end[0], style=end[1])]
    if beat is not None and beat.is_stuck(now := time.time()):
        return [
            Text(f"its process is alive, but finished no step for {duration(now - beat.moved)}", style="yellow")
        ]
    return [Text("trained; now evaluating its features")] if beat and beat.state == "evaluating" else []


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
    pace = Pace()
    with show:
        while True:
            saved, beat = folder.saved(), last_beat(folder)
            end = _end(folder, beat)
            pace.mark(beat.time if beat else time.time(), _done(folder.metrics(), beat))
            steps = pace.steps_per_second
            if steps is None and beat and beat.step and beat.seconds and beat.state == "training":
                steps = beat.step / beat.seconds
            speed = steps * saved.work.images_per_step if steps else None
            show.update(folder.results().get(SPEED.key, speed) if end else speed)
            if end is not None:
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
        lines += [line.plain for line in _ending(self.folder, last_beat(self.folder))]
        for line in lines:
            if line not in self.said:
                say(line, wrap=False)
                self.said.add(line)
