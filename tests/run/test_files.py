"""A file that cannot be written is reported in one line with a remedy, and early if possible."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from rankgap.cli import EXIT_PIPE, EXIT_USER, main
from rankgap.errors import UserError, unusable
from rankgap.run.config import TrainConfig
from rankgap.run.files import check_writable, replace_copy, replace_file, writing
from rankgap.run.folder import RunFolder
from rankgap.run.trainer import train

TRAIN = ["train", "--data", "digits", "--limit", "128", "--batch-size", "64", "--epochs", "1"]
TRAIN += ["--backbone", "resnet_tiny", "--protocol", "none", "--loggers", "none", "--precision", "32-true"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may be larger than 200 kB: the error is that of a full disk, except for its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == EXIT_USER
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files") / "run"
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "free some space there"),
        (errno.EACCES, "change its permissions"),
        (errno.EROFS, "choose another place"),
        (errno.ENOTDIR, "expected a folder, found a file"),
        (errno.EISDIR, "name a file in it"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_refusal_names_the_place_the_reason_and_a_remedy(number: int, says: str) -> None:
    error = OSError(number, os.strerror(number), "runs/a")
    assert str(unusable(error)).startswith(f"runs/a: {os.strerror(number)}")
    assert says in str(unusable(error))
    assert str(unusable(error, "elsewhere")).startswith("elsewhere: ")


def test_a_folder_is_checked_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300), Path("/proc/rankgap/run")):
        with pytest.raises(UserError, match=str(place)):
            check_writable(place)


def test_a_file_that_cannot_be_completed_stays_as_it_was(tmp_path: Path, full_disk: None) -> None:
    file, source = tmp_path / "a", tmp_path / "b"
    replace_file(file, b"before")
    source.write_bytes(bytes(200_000))
    with (
        source.open("ab", buffering=0) as end,
        pytest.raises(UserError, match="b: File too large"),
        writing(source),
    ):
        end.write(b"more")
    with pytest.raises(UserError, match="a: File too large; free some space there"):
        replace_file(file, bytes(300_000))
    assert file.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    replace_copy(source, file)
    assert file.read_bytes() == source.read_bytes()


def test_a_device_is_written_to_and_not_replaced() -> None:
    replace_file(Path("/dev/null"), b"gone")
    assert not Path("/dev/null").is_file()
    with pytest.raises(UserError, match="/dev/full: No space left on device"):
        replace_file(Path("/dev/full"), b"x" * 100_000)


def test_a_checkpoint_that_finds_no_room_leaves_the_last_one_whole(run: Path, full_disk: None) -> None:
    """torch.save meets the refusal, and then raises an error of its own."""
    folder = RunFolder(run)
    state = folder.load_checkpoint()
    with pytest.raises(UserError, match="last.ckpt: File too large"):  # noqa: RUF043
        folder.save_checkpoint(state)
    assert folder.load_checkpoint().step == state.step
    assert not list(run.rglob("*.partial"))


def test_no_room_for_a_checkpoint_ends_training_in_one_line(
    tmp_path: Path, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "last.ckpt: File too large; free some space" in refused(capsys, *TRAIN, "--out", str(tmp_path / "run"))


class FullDisk(Callback):
    """A logger of another library, whose error names no file."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["metrics.csv", "spectra.jsonl", "a logger's"])
def test_no_room_for_a_file_that_grows_ends_training_in_one_line(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = TrainConfig(
        data="digits", limit=64, batch_size=32, backbone="resnet_tiny", loggers=(), protocol=(), out=str(out)
    )

    def fill(_: object) -> None:
        if name.endswith(("csv", "jsonl")):
            (out / name).symlink_to("/dev/full")

    place = out if name == "a logger's" else out / name
    with pytest.raises(UserError, match=f"^{place}: No space left on device; free some space"):
        train(config, callbacks=[FullDisk()] if place == out else [], announce=fill)


@pytest.mark.parametrize("place", ["file/run", "file", "n" * 300, "/proc/rankgap/run", "/dev/null"])
def test_a_run_folder_that_cannot_be_is_refused_before_the_data_are_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert place in refused(capsys, *TRAIN, "--data", "folder:nowhere", "--out", place)


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "digits", "--out", "PLACE"],
        ["inspect", "digits", "--broken", "PLACE"],
        ["design", "--online", "log1p", "--out", "PLACE"],
        ["report", "RUN", "--out", "PLACE"],
        ["demo", "--out", "PLACE"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("place", ["file/a.png", "/proc/rankgap/a.png"])
def test_every_output_is_named(
    command: list[str],
    place: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = refused(capsys, *(word.replace("PLACE", place).replace("RUN", str(run)) for word in command))
    assert str(Path(place).parent) in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_without_permission_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.chmod(0)
    try:
        for command in ("evaluate", "score", "compare", "watch", "report"):
            assert "Permission denied" in refused(capsys, command, str(run))
    finally:
        run.chmod(0o700)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "results.json", "spectra.jsonl"])
def test_a_file_that_cannot_be_read_is_named(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    folder = RunFolder(run)
    read = {
        "config.yaml": folder.saved,
        "metrics.csv": folder.metrics,
        "results.json": folder.results,
        "spectra.jsonl": folder.spectra,
    }[name]
    with pytest.raises(UserError, match=f"{name}: Permission denied; change its permissions"):
        read()


def piped(*arguments: str, into: str) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; {sys.executable} -m rankgap {' '.join(arguments)} {into}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("arguments", "code"), [(("methods",), EXIT_PIPE), (("train", "--help"), 0)])
def test_output_that_nobody_reads_any_more_ends_quietly(arguments: tuple[str, ...], code: int) -> None:
    """The reader closes at once, so that every write meets a closed pipe."""
    done = piped(*arguments, into="| (exec <&-; sleep 0)")
    assert done.stderr == ""
    assert done.returncode == code


def test_output_without_room_is_one_line() -> None:
    done = piped("methods", into="> /dev/full")
    assert done.stderr == "rankgap: No space left on device; free some space there, or choose another place\n"
    assert done.returncode == EXIT_USER
