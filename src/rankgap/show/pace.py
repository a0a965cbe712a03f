"""The speed of a run, the time left, and how both are shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from rankgap.run.work import Work
from rankgap.show.columns import SPEED

_APART = 1.0  # seconds between two marks
_MARKS = 31  # the speed is over the last half minute, or over the last 30 steps if they took longer


class Pace:
    """The speed of a run over its last steps.

    Example:
        >>> pace = Pace()
        >>> for time, step in ((0.0, 0), (2.0, 10), (4.0, 20)):
        ...     pace.mark(time, step)
        >>> pace.steps_per_second
        5.0
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)

    def mark(self, time: float, step: int) -> None:
        """Record the number of steps done at a time in seconds."""
        if len(self._marks) > 1 and time - self._marks[-2][0] < _APART:
            self._marks.pop()
        self._marks.append((time, step))

    @property
    def steps_per_second(self) -> float | None:
        """The speed; None until there are two marks with a step between them."""
        if len(self._marks) < 2:
            return None
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) if last > first and end > start else None


def duration(seconds: float) -> str:
    """A time in words, to two units at most.

    Example:
        >>> [duration(seconds) for seconds in (9, 200, 2_401, 33_000, 200_000)]
        ['9 s', '3 min 20 s', '40 min', '9 h 10 min', '2 d 7 h']
    """
    whole = max(round(seconds), 0)
    if whole >= 600:
        whole = 60 * round(whole / 60)
    if 600 <= whole < 3_600:
        return f"{whole // 60} min"
    for unit, size, below, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{whole} s"


def time_left(work: Work, step: int, images_per_second: float | None) -> float | None:
    """Seconds until the last step at a given speed; None if the speed is not known."""
    return (work.steps - step) * work.images_per_step / images_per_second if images_per_second else None


def measured(row: Mapping[str, float], images_per_second: float | None) -> list[str]:
    """The parts of a line with a reading and the speed, as far as they are known."""
    parts = []
    if row:
        online, target = (f"{rank:.{int(rank < 100)}f}" for rank in (row["erank_online"], row["erank_target"]))
        parts = [f"loss {row['loss']:.3f}", f"erank {online} -> {target}"]
    return [*parts, f"{SPEED.text(images_per_second)} {SPEED.heading}"] if images_per_second else parts


def status_line(step: int, row: Mapping[str, float], work: Work, images_per_second: float | None) -> str:
    """The state of a run after a step, as one plain line: epoch, loss, both ranks, speed and time left.

    Example:
        >>> row = {"loss": -0.9, "erank_online": 12.3, "erank_target": 45.6}
        >>> status_line(60, row, Work(images=640, batch_size=64, epochs=100, features=1), 577.0)
        'epoch 6/100  loss -0.900  erank 12.3 -> 45.6  577 images/s  1 min 44 s left'
    """
    left = time_left(work, step, images_per_second)
    ending = [f"{duration(left)} left"] if left else []
    return "  ".join(
        [f"epoch {work.clock(step).epoch:.4g}/{work.epochs}", *measured(row, images_per_second), *ending]
    )
