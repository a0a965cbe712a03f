"""The readings of a run, however long it is."""

from __future__ import annotations

from rankgap.watch.reading import Reading

LONGEST = 10_000


class History(list[Reading]):
    """Readings, oldest first. Beyond `LONGEST`, every second one is dropped, and the newest is always there."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0
        self._kept_every = 1

    def add(self, reading: Reading) -> None:
        """Take the newest reading."""
        if (self._seen - 1) % self._kept_every and self:
            self[-1] = reading  # its predecessor was there only as the newest
        else:
            self.append(reading)
        self._seen += 1
        if len(self) > LONGEST:
            del self[1::2]
            self._kept_every *= 2
