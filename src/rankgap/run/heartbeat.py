"""The heartbeat of a run, `heartbeat.json`, with which `watch` tells a live run from a dead one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import lightning as L

from rankgap.errors import InterruptedRunError, UserError
from rankgap.run.files import replace_file
from rankgap.run.folder import RunFolder
from rankgap.run.module import SelfSupervised
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain, read, read_text

EVERY = 5.0  # seconds between two beats
PATIENCE = 60.0  # seconds without a beat after which a run counts as dead, on any machine
_STUCK = 20  # usual durations of a step

State = Literal["training", "evaluating", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """The state of a run at one time.

    Args:
        state: what the run is doing, or how it ended.
        host: the machine that it runs on.
        pid: the id of its process there.
        step: optimiser steps done.
        seconds: running time, without the time between an interruption and a resumption.
        moved: when its last step ended, in seconds since 1970.
        time: when this was written, in seconds since 1970.
    """

    state: State
    host: str
    pid: int
    step: int
    seconds: float
    moved: float
    time: float

    def death(self, now: float) -> str | None:
        """Why a run that has not ended counts as dead; None if it is alive or has ended.

        Args:
            now: seconds since 1970.
        """
        age = now - self.time
        if self.state in ("finished", "interrupted", "failed") or age < 2 * EVERY:
            return None
        if self.host == socket.gethostname() and not _is_alive(self.pid):
            return f"its process {self.pid} is gone"
        return f"no heartbeat from its process {self.pid} on {self.host}" if age > PATIENCE else None

    def is_stuck(self, now: float) -> bool:
        """Whether a training run has finished no step for much longer than usual."""
        usual = self.seconds / max(self.step, 1)
        return self.state == "training" and now - self.moved > max(PATIENCE, _STUCK * usual)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _file(folder: RunFolder) -> Path:
    return folder.path / "heartbeat.json"


def last_beat(folder: RunFolder) -> Beat | None:
    """The last beat of a run; None if it has written none.

    Raises:
        UserError: the file is damaged.
    """
    file = _file(folder)
    if not file.is_file():
        return None
    try:
        values = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    return read(Beat, values, str(file))


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
            replace_file(_file(self.folder), json.dumps(plain(beat)).encode() + b"\n")
