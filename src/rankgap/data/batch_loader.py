"""Batches that worker processes decode ahead."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, get_worker_info

from rankgap.errors import UserError


class _Failure(NamedTuple):
    """What a worker process sends in place of a batch that it cannot make."""

    kind: type[UserError]
    message: str


class _Reported(Dataset[Any]):
    """A set of batches whose errors leave a worker process as values: raised, they would arrive as a traceback."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None:
            return self.batches[index]
        try:
            return self.batches[index]
        except UserError as error:
            return _Failure(type(error), str(error))


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C waits until the workers have started: Python drops what a signal handler raises while it forks.

    The workers inherit this, and leave Ctrl-C to the main process, which ends them.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


class BatchLoader(DataLoader[Any]):
    """Yields the batches of a set in order.

    Args:
        batches: each item is a whole batch, `Batch` or `Crops`.
        workers: processes that decode ahead; 0 decodes when a batch is asked for.
        pin_memory: whether to put batches where a GPU fetches them from.

    Raises:
        UserError: an image is broken; the same one line with and without workers.
    """

    def __init__(self, batches: Dataset[Any], *, workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            _Reported(batches),
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=4 if workers else None,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with _interrupted_later():
            batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, _Failure):
                raise batch.kind(batch.message)
            yield batch
