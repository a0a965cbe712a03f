"""What a run is doing, or how it ended, from its folder: for every live view of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankgap.run.beat import Beat, last_beat
from rankgap.run.folder import RunFolder
from rankgap.run.saved import SavedRun
from rankgap.show.columns import SPEED
from rankgap.show.pace import Pace, duration, time_left


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one time.

    Args:
        folder: the run's folder.
        saved: its configuration.
        metrics: its readings, by column.
        beat: its last sign of life; None for a run of an earlier version.
        images_per_second: its speed; None if it is not known yet.
    """

    folder: RunFolder
    saved: SavedRun
    metrics: Mapping[str, Sequence[float]]
    beat: Beat | None
    images_per_second: float | None

    @property
    def done(self) -> int:
        """Steps done, according to the last reading or the last heartbeat."""
        read = int(self.metrics["step"][-1]) + 1 if self.metrics.get("step") else 0
        return max(read, self.beat.step if self.beat else 0)

    @property
    def progress(self) -> str:
        """Steps done and the speed, in words."""
        speed = self.images_per_second
        said = "" if speed is None else f", {SPEED.text(speed)} {SPEED.heading}"
        return f"{self.done:,} of {self.saved.work.steps:,} steps{said}"

    @property
    def times(self) -> str:
        """The time that the run has taken and the time left, in words, as far as they are known."""
        left = None if self.end else time_left(self.saved.work, self.done, self.images_per_second)
        times = [f"{duration(self.beat.seconds)} so far"] if self.beat else []
        return ", ".join([*times, *([f"about {duration(left)} left"] if left else [])])

    @property
    def end(self) -> tuple[str, str] | None:
        """How the run ended, as a sentence and its style; None while it is running."""
        folder, beat = self.folder, self.beat
        if beat is None:
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

    @property
    def ending(self) -> list[tuple[str, str]]:
        """Lines, each with its style, about how the run ended, or about what it does besides training."""
        if (end := self.end) is not None:
            verdict = self.folder.verdict() if end[0] == "finished" else None
            return [*([(f"verdict: {verdict}", "")] if verdict else []), end]
        beat = self.beat
        if beat is not None and beat.is_stuck(now := time.time()):
            return [
                (f"its process is alive, but finished no step for {duration(now - beat.moved)}", "yellow"),
            ]
        return [("trained; now evaluating its features", "")] if beat and beat.state == "evaluating" else []


def status(folder: RunFolder, images_per_second: float | None) -> Status:
    """The status of a run, at a speed that is known from elsewhere.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    return Status(folder, folder.saved(), folder.metrics(), last_beat(folder), images_per_second)


class Follower:
    """Looks at a run again and again, and so knows its speed.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self._pace = folder, Pace()

    def look(self) -> Status:
        """The run's status now.

        Raises:
            UserError: as in `status`.
        """
        found = status(self.folder, None)
        beat = found.beat
        self._pace.mark(beat.time if beat else time.time(), found.done)
        steps = self._pace.steps_per_second
        if steps is None and beat and beat.step and beat.seconds and beat.state == "training":
            steps = beat.step / beat.seconds
        speed = steps * found.saved.work.images_per_step if steps else None
        if found.end:
            speed = self.folder.results().get(SPEED.key, speed)
        return Status(self.folder, found.saved, found.metrics, beat, speed)
