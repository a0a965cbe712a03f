"""The heartbeat of a run, and the conclusions from it."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankgap.errors import InterruptedRunError, UserError
from rankgap.run.beat import PATIENCE, Beat, check_at_rest, last_beat
from rankgap.run.folder import RunFolder
from rankgap.run.heartbeat import Heartbeat

NOW = 1_000_000.0
HERE = Beat(
    state="training",
    host=socket.gethostname(),
    pid=os.getpid(),
    step=10,
    seconds=20.0,
    moved=NOW - 2,
    time=NOW - 1,
)


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_process_is_gone_is_dead_at_once() -> None:
    beat = dataclasses.replace(HERE, pid=gone())
    assert beat.death(NOW) == f"its process {beat.pid} is gone"


def test_a_run_elsewhere_is_dead_once_it_gives_no_sign_of_life() -> None:
    beat = dataclasses.replace(HERE, host="elsewhere", pid=gone())
    assert beat.death(NOW + PATIENCE - 2) is None
    assert "no heartbeat from its process" in (beat.death(NOW + PATIENCE) or "")
    assert HERE.death(NOW + 10 * PATIENCE) is None  # stopped, perhaps, but its process is there


def test_nothing_writes_to_the_folder_of_a_run_that_trains(tmp_path: Path) -> None:
    folder, sleeper = (
        RunFolder(tmp_path),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE),
    )
    check_at_rest(folder)
    with Heartbeat(folder, step=7, seconds=3.0):
        check_at_rest(folder)  # it is this very process that trains
    file = tmp_path / "heartbeat.json"
    other = json.loads(file.read_text()) | {"state": "training", "pid": sleeper.pid}
    file.write_text(json.dumps(other))
    with pytest.raises(UserError, match=f"being trained by process {sleeper.pid}"):
        check_at_rest(folder)
    sleeper.communicate(b"\n")
    check_at_rest(folder)  # it is gone


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_a_run_that_has_ended_is_not_dead(state: str) -> None:
    assert dataclasses.replace(HERE, state=state, pid=gone()).death(NOW + 10_000) is None  # type: ignore[arg-type]


def test_a_run_that_beats_but_takes_no_step_is_stuck() -> None:
    stuck = dataclasses.replace(HERE, moved=NOW - PATIENCE - 1)
    assert stuck.is_stuck(NOW)
    assert not HERE.is_stuck(NOW)
    assert not dataclasses.replace(stuck, state="evaluating").is_stuck(NOW)
    assert not dataclasses.replace(stuck, seconds=1_000.0).is_stuck(NOW)  # its steps take 100 seconds


def test_a_run_s_end_is_kept_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert last_beat(folder) is None
    with Heartbeat(folder, step=7, seconds=3.0):
        beat = last_beat(folder)
        assert beat is not None
        assert (beat.state, beat.step, beat.pid) == ("training", 7, os.getpid())
        assert beat.seconds >= 3
        assert beat.death(time.time()) is None
    states = []
    for error in (InterruptedRunError("stopped"), KeyboardInterrupt(), RuntimeError("broken")):
        with pytest.raises(type(error)), Heartbeat(folder, step=7, seconds=3.0):
            raise error
        states.append((last_beat(folder) or HERE).state)
    assert states == ["interrupted", "interrupted", "failed"]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"state": "asleep"}'])
def test_a_spoilt_sign_of_life_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text(text)
    with pytest.raises(UserError, match=r"heartbeat\.json"):
        last_beat(RunFolder(tmp_path))


@pytest.mark.parametrize("pid", [-1, 0, 10**30])
def test_a_process_number_that_none_can_have_is_no_error(pid: int) -> None:
    assert isinstance(dataclasses.replace(HERE, pid=pid).death(NOW + 20), str | None)
