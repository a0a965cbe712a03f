"""Encoded images where they lie: files, rows of a table, arrays; and how many of them become a tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rankgap.data.decoding import Header, ImageError, decode, read_header
from rankgap.errors import UserError

_T = TypeVar("_T")
_PART = 32  # images a thread takes at once


class Encoded(Protocol):
    """N encoded images, read one at a time from wherever they are kept; picklable."""

    def __len__(self) -> int:
        """How many."""

    def open(self, index: int) -> BinaryIO:
        """The encoded bytes of one."""

    def name(self, index: int) -> str:
        """What a message calls it."""


@dataclass(frozen=True, slots=True)
class Files:
    """Image files below a folder.

    Args:
        root: the folder.
        paths: relative paths, kept as one Arrow array: Python strings would cost several times the memory, and
            worker processes would copy them page by page.
    """

    root: str
    paths: pa.StringArray

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> BinaryIO:
        """The file."""
        return open(self.name(index), "rb")

    def name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.root, self.paths[index].as_py())


@dataclass(frozen=True, slots=True)
class Rows:
    """Images in a column of an Arrow table: bytes, or a struct of bytes and path as the Hub keeps them.

    Args:
        label: what a message calls the table.
        table: `pyarrow.Table`, or the memory-mapped table of `datasets`.
        column: the images' column.
    """

    label: str
    table: Any
    column: str

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def _row(self, index: int) -> dict[str, Any]:
        value = self.table.column(self.column)[index].as_py()
        return value if isinstance(value, dict) else {"bytes": value}

    def open(self, index: int) -> BinaryIO:
        """The row's bytes, or the file that it names."""
        row = self._row(index)
        if row.get("bytes") is None and row.get("path"):
            return open(row["path"], "rb")
        return io.BytesIO(row.get("bytes") or b"")

    def name(self, index: int) -> str:
        """The row's number, and the path that it remembers."""
        path = self._row(index).get("path")
        return f"{self.label}, row {index}" + (f" ({path})" if path else "")


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images that came decoded, (N, C, H, W) uint8."""

    label: str
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> BinaryIO:
        """The image as a .npy file."""
        file = io.BytesIO()
        np.save(file, self.images[index].permute(1, 2, 0).numpy())
        file.seek(0)
        return file

    def name(self, index: int) -> str:
        """The image's number."""
        return f"{self.label}, image {index}"


def in_parts(function: Callable[[range], _T], count: int, *, threads: bool = True) -> Iterator[_T]:
    """The function's results over consecutive parts of range(count), in order, by a thread on each core.

    Pillow decodes without Python's lock. A worker process of a `DataLoader` works alone: its siblings have the
    other cores.
    """
    parts = [range(start, min(start + _PART, count)) for start in range(0, count, _PART)]
    if not threads or len(parts) < 2 or get_worker_info() is not None:
        yield from map(function, parts)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, parts)


def header_of(source: Encoded, index: int) -> Header:
    """The header of one image.

    Raises:
        UserError: it cannot be read; the message names it.
    """
    try:
        with source.open(index) as file:
            return read_header(file)
    except (ImageError, OSError) as error:
        raise UserError(f"{source.name(index)} cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedImages:
    """Images of a source, decoded when they are asked for.

    Args:
        source: where they lie.
        rows: (N,) int64: which of the source's images, in this order.
        size: stored side S in pixels.
        channels: C.
        convert: convert to `channels`; else an image with other channels is an error.
        example: name of an image with `channels`, for that error.
        threads: decode in threads. At 32 px they take twice the time, waiting for Python's lock; from about
            128 px on they pay.
    """

    source: Encoded
    rows: npt.NDArray[np.int64]
    size: int
    channels: int
    convert: bool
    example: str
    threads: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return len(self) * self.channels * self.size**2

    def check(self, row: int, found: int) -> None:
        """Refuse an image of the source that has other channels, unless it is to be converted.

        Raises:
            UserError: names this image and one with the expected channels.
        """
        if not self.convert and found != self.channels:
            raise UserError(
                f"mixed channel counts: {self.source.name(row)} has {found}, {self.example} has {self.channels}; "
                f"--channels 3 (or 1) converts all of them"
            )

    def check_headers(self) -> None:
        """Read every header, so that a file that is no image shows before training and not in its midst.

        Raises:
            UserError: names the first image that cannot be read, or whose channels differ.
        """

        def check(part: range) -> None:
            for k in part:
                row = int(self.rows[k])
                self.check(row, header_of(self.source, row).channels)

        for _ in in_parts(check, len(self)):
            pass

    def read(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Decode some of the images.

        Args:
            indices: B positions in [0, N).

        Returns:
            (B, C, S, S) uint8, and (B, 2) int32: height and width of the originals.

        Raises:
            UserError: an image is broken or has other channels; the message names it.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        images = np.empty((len(rows), self.channels, self.size, self.size), np.uint8)
        sizes = np.empty((len(rows), 2), np.int32)

        def fill(part: range) -> None:
            for k in part:
                row = int(rows[k])
                try:
                    with self.source.open(row) as file:
                        pixels, header = decode(file, self.size, self.channels if self.convert else None)
                except (ImageError, OSError) as error:
                    raise UserError(f"{self.source.name(row)} cannot be read: {error}") from error
                self.check(row, header.channels)
                images[k] = pixels.transpose(2, 0, 1)
                sizes[k] = header.height, header.width

        for _ in in_parts(fill, len(rows), threads=self.threads):
            pass
        return torch.from_numpy(images), torch.from_numpy(sizes)
