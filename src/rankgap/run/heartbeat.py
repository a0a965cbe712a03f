"""The heartbeat of a run, `heartbeat.json`, with which `watch` tells a live run from a dead one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import lightning as L

from rankgap.errors import InterruptedRunError, UserError
from rankgap.run.beat import EVERY, Beat, State, beat_file
from rankgap.run.files import replace_file
from rankgap.run.folder import RunFolder
from rankgap.run.module import SelfSupervised
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain


class Heartbeat(L.Callback):
    """Writes a beat every few seconds from its own thread, and how the run ended.

    The thread also beats during long steps, compilation and evaluation. A beat that cannot be written (on a full
    disk, say) does not stop the run.

    Args:
        folder: the run folder.
        step: optimiser steps already done.
        seconds: seconds already spent on them.

    Attributes:
        state: what the run is doing; leaving the context sets how it ended.
    """

    def __init__(self, folder: RunFolder, *, step: int, seconds: float) -> None:
        self.folder, self.step, self.before = folder, step, seconds
        self.state: State = "training"
        self.began = self.moved = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Count a step."""
        assert isinstance(pl_module, SelfSupervised)
        self.step, self.moved = pl_module.step, time.time()

    def __enter__(self) -> Self:
        if is_main_process():
            self._beat()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asked = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        self.state = "finished" if error is None else "interrupted" if asked else "failed"
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            self._beat()

    def _beat_on(self) -> None:
        while not self._ended.wait(EVERY):
            self._beat()

    def _beat(self) -> None:
        now = time.time()
        beat = Beat(
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=self.step,
            seconds=self.before + now - self.began,
            moved=self.moved,
            time=now,
        )
        with contextlib.suppress(OSError, UserError):
            replace_file(beat_file(self.folder), json.dumps(plain(beat)).encode() + b"\n")
