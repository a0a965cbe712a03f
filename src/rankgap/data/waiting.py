"""A line on standard error about slow work."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

_PATIENCE, _EVERY = 2.0, 30.0  # seconds until the first line, and between lines that stay


class Waiting:
    """Reports progress once some work has taken two seconds: a moving line in a terminal, else a line every 30 s.

    Args:
        what: the work, such as "reading headers".
        total: how much there is to do; None if unknown.

    Example:
        >>> with Waiting("reading headers", 3) as waiting:
        ...     for _ in range(3):
        ...         waiting.add(1)
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._moves = sys.stderr.isatty()
        self._silent = os.environ.get("LOCAL_RANK", "0") != "0"  # one process of several speaks
        self._next = time.monotonic() + _PATIENCE
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width and self._moves:
            print("\r" + " " * self._width, end="\r", file=sys.stderr, flush=True)

    def add(self, count: int) -> None:
        """Record that `count` more is done; it may exceed the rest."""
        self.done = self.done + count if self.total is None else min(self.done + count, self.total)
        if self._silent or time.monotonic() < self._next:
            return
        line = f"{self.what}: {self.done:,}" + (f" of {self.total:,}" if self.total else "") + " ..."
        self._width = max(self._width, len(line))
        print(("\r" if self._moves else "") + line, end="" if self._moves else "\n", file=sys.stderr, flush=True)
        self._next = time.monotonic() + (0.2 if self._moves else _EVERY)
