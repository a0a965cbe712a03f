"""Progress of an embedding in the terminal, or as plain lines in a file or a pipe."""

from __future__ import annotations

import time
from contextlib import nullcontext

from rich.console import Group
from rich.live import Live

from rankgap.data.names import plural, shown
from rankgap.embed.embedding import Embedding
from rankgap.show.columns import SPEED
from rankgap.show.pace import Pace, duration
from rankgap.show.progress import progress_lines
from rankgap.show.terminal import console, say

_LINES = 10  # that a pipe gets
_SILENCE = 30.0  # seconds between them at most


class EmbeddingProgress:
    """The images done, images per second and the time left.

    Args:
        name: of the file.
        total: number of images.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.pace = Pace()
        self._said: tuple[float, int] | None = None

    def __call__(self, done: int) -> None:
        """Take the number of images done. Without a terminal to redraw, print it now and then as a line."""
        now = time.perf_counter()
        if self._said is None:
            self._said = now, done
            if done:
                say("  ", ("continued:", "dim"), f" {done:,} images were done before an interruption")
        self.done = done
        self.pace.mark(now, done)
        then, before = self._said
        due = (done - before) * _LINES >= self.total or now - then >= _SILENCE
        if not console.is_terminal and due:
            say("  ".join([f"{done:,}/{self.total:,} images", *self._parts()]))
            self._said = now, done

    @property
    def ending(self) -> str:
        """The time left, if it is known."""
        speed = self.pace.steps_per_second
        return f"{duration((self.total - self.done) / speed)} left" if speed and self.done < self.total else ""

    def _parts(self) -> list[str]:
        speed = self.pace.steps_per_second
        parts = [f"{SPEED.text(speed)} {SPEED.heading}", self.ending] if speed else []
        return [part for part in parts if part]

    def view(self) -> Group:
        """The two lines that a terminal shows."""
        parts = self._parts()[:1]
        return progress_lines(self.name, self.done, self.total, self.ending, parts, console.width)


def show_embedding(work: Embedding) -> None:
    """Do the work, and show what is embedded, how far it is, and the file."""
    record, out = work.record, shown(str(work.out))
    shape = " x ".join(map(str, (record.count, *record.shape)))
    say(
        (out, "bold"),
        f": {record.count:,} images of {shown(record.data)} by {record.encoder}, views of {record.size} px",
    )
    for note in work.notes:
        say("  ", ("data:", "dim"), f" {note}")
    progress = EmbeddingProgress(shown(work.out.name), record.count)
    began = time.perf_counter()
    live = Live(get_renderable=progress.view, console=console, refresh_per_second=4)
    with live if console.is_terminal else nullcontext():
        work.run(progress)
    took = duration(time.perf_counter() - began)
    say(f"features {shape}, written in {took}: {out}", wrap=False)
    if work.skipped:
        count = len(work.skipped)
        say(f"left out: {count:,} {plural(count, 'image')}, listed in {out}.skipped.txt", wrap=False)
