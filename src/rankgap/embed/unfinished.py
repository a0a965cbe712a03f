"""Features on their way to a file: what survives an interruption, and where to go on.

The first line is the record as JSON. Then come the batches: the number of rows and a checksum (two 32-bit numbers,
little-endian), and the rows in float32. A batch that an interruption has cut short is dropped.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from rankgap.embed.record import Record
from rankgap.errors import UserError
from rankgap.run.files import replacing, writing
from rankgap.run.reader import plain, read

_HEAD = struct.Struct("<II")
_LONGEST_RECORD = 2**24  # bytes

Rows = npt.NDArray[np.float32]


class Unfinished:
    """Features of a record's images, of which the first `done` are there. It is a context manager.

    Args:
        path: the file; a new one is begun if there is none.
        record: what the features are of.
        overwrite: begin anew, where the file holds something else.
        before_skipped: number of images before the first that is skipped. A file that was begun without skipping
            is continued after the last whole batch of these.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: Path, record: Record, *, overwrite: bool, before_skipped: int = 0) -> None:
        self.path, self.record, self.done = path, record, 0
        self._sum = 0  # checksum of all features that are there
        with writing(path):
            path.touch()
            self._keep(before_skipped)
            # Unbuffered, so that a batch that was added survives the process.
            self._file = path.open("r+b", buffering=0)
        with ExitStack() as closing:
            closing.callback(self._file.close)
            self._begin(overwrite=overwrite)
            closing.pop_all()  # it stays open until the end of the `with` block

    def _begin(self, *, overwrite: bool) -> None:
        """Find the end of what is there, or write the first line."""
        if (refusal := self._refusal()) is None:
            self._end = self._start = self._file.tell()
            for rows in self.batches():
                self._count(rows)
        elif overwrite or not self.path.stat().st_size:
            with writing(self.path):
                self._file.truncate(0)
                self._file.seek(0)
                self._write(self._first_line())
            self._end = self._start = self._file.tell()
        else:
            raise UserError(
                f"{self.path} {refusal}: repeat that command to finish it, or begin anew with --overwrite"
            )
        self._file.truncate(self._end)

    def _count(self, rows: Rows) -> None:
        """Count a batch that is in the file."""
        self.done += len(rows)
        self._sum = zlib.crc32(rows.data, self._sum)
        self._end += _HEAD.size + rows.nbytes

    def _refusal(self) -> str | None:
        """Why the file cannot be continued; None if it can."""
        line = _line(self._file.read(_LONGEST_RECORD))
        self._file.seek(len(line))
        if (then := self._record(line)) is None:
            return "does not hold features that this version of rankgap has begun"
        told = then.difference(self.record)
        return None if told is None else f"was begun {told}"

    def _keep(self, before_skipped: int) -> None:
        """Make a file that was begun without skipping one that skips, with the batches that are the same."""
        with self.path.open("rb") as file:
            line = _line(file.read(_LONGEST_RECORD))
        then = self._record(line)
        whole = {split: each.images for split, each in self.record.images.items()}
        if then is None or then.rows != whole or then.rows == self.record.rows:
            return
        if then.difference(replace(self.record, rows=whole)) is not None:
            return
        self._start, kept = len(line), 0
        with replacing(self.path) as file:
            file.write(self._first_line())
            for rows in self.batches():
                kept += len(rows)
                if kept > before_skipped:
                    break
                file.write(_framed(rows))

    def _first_line(self) -> bytes:
        return json.dumps(plain(self.record)).encode() + b"\n"

    def _record(self, line: bytes) -> Record | None:
        try:
            return read(Record, json.loads(line), str(self.path))
        except (UserError, ValueError):
            return None

    def add(self, rows: Rows) -> None:
        """Append a batch of features (B, ...)."""
        assert rows.shape[1:] == self.record.shape
        rows = np.ascontiguousarray(rows)
        with writing(self.path):
            self._file.seek(self._end)
            self._write(_framed(rows))
        self._count(rows)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:  # a disk that fills up takes a part first, and refuses the rest
            left = left[self._file.write(left) :]

    def batches(self) -> Iterator[Rows]:
        """The features that are there, batch by batch, up to the first batch that is not whole."""
        place, left = self._start, self.record.count
        with self.path.open("rb") as file:
            file.seek(place)
            while left and len(head := file.read(_HEAD.size)) == _HEAD.size:
                count, checksum = _HEAD.unpack(head)
                if not 0 < count <= min(left, self.record.batch_size):
                    return
                content = file.read(count * self.record.row_bytes)
                if len(content) < count * self.record.row_bytes or zlib.crc32(content) != checksum:
                    return
                left -= count
                yield np.frombuffer(content, "<f4").reshape(count, *self.record.shape)

    def finished(self) -> Iterator[Rows]:
        """All features, batch by batch.

        Raises:
            UserError: some are missing or damaged.
        """
        found = 0
        for rows in self.batches():
            found = zlib.crc32(rows.data, found)
            yield rows
        if self.done < self.record.count or found != self._sum:  # another process may write to it too
            raise UserError(f"{self.path} has been changed by something else: repeat the command to finish it")

    def remove(self) -> None:
        """Delete the file, once its features are elsewhere."""
        self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _framed(rows: Rows) -> bytes:
    """A batch as the file has it: its length, its checksum and its values."""
    return _HEAD.pack(len(rows), zlib.crc32(rows.data)) + rows.tobytes()


def _line(start: bytes) -> bytes:
    return start[: start.find(b"\n") + 1]
