"""The sign of life that a running run leaves in its folder, `heartbeat.json`."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankgap.errors import UserError, check_within
from rankgap.run.folder import RunFolder
from rankgap.run.reader import read, read_json

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

    def __post_init__(self) -> None:
        check_within(self, step=(0, 2**53), seconds=(0, 1e12), moved=(0, 1e12), time=(0, 1e12))

    @property
    def is_running(self) -> bool:
        """Whether the run had not ended when this was written."""
        return self.state in ("training", "evaluating")

    def death(self, now: float) -> str | None:
        """Why a run that has not ended counts as dead; None if it is alive or has ended.

        Args:
            now: seconds since 1970.
        """
        if not self.is_running:
            return None
        if self.host == socket.gethostname() and os.name == "posix":
            return None if _is_alive(self.pid) else f"its process {self.pid} is gone"
        return f"no heartbeat from its process {self.pid} on {self.host}" if now - self.time > PATIENCE else None

    def is_stuck(self, now: float) -> bool:
        """Whether a training run has finished no step for much longer than usual."""
        usual = self.seconds / max(self.step, 1)
        return self.state == "training" and now - self.moved > max(PATIENCE, _STUCK * usual)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def beat_file(folder: RunFolder) -> Path:
    """The file of a run's last beat."""
    return folder.path / "heartbeat.json"


def last_beat(folder: RunFolder) -> Beat | None:
    """The last beat of a run; None if it has written none.

    Raises:
        UserError: the file is damaged.
    """
    file = beat_file(folder)
    return read(Beat, read_json(file), str(file)) if file.is_file() else None


def check_at_rest(folder: RunFolder) -> None:
    """Refuse to write to the folder of a run that is training now, which would spoil both runs.

    Raises:
        UserError: a process is training or evaluating the run.
    """
    beat = last_beat(folder)
    if beat is None or not beat.is_running or beat.death(time.time()) is not None:
        return
    if (beat.host, beat.pid) != (socket.gethostname(), os.getpid()):
        raise UserError(
            f"{folder.path} is being trained by process {beat.pid} on {beat.host}: stop that first (if it is some "
            f"other program, delete {beat_file(folder)})"
        )
