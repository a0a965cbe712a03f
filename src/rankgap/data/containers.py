"""Containers of images: files, rows of a table, or an array of decoded images."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from rankgap.data.decoding import ImageError
from rankgap.data.names import shown
from rankgap.data.waiting import Waiting


class Encoded(Protocol):
    """N encoded images, read one at a time. Implementations can be pickled."""

    def __len__(self) -> int:
        """N, the number of images."""

    def open(self, index: int) -> BinaryIO:
        """Open an image's encoded bytes."""

    def short(self, index: int) -> str:
        """An image's name within the set, for people."""

    def name(self, index: int) -> str:
        """An image's full name, for messages."""

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Each image's name within the set and its size in bytes, from which a `Fingerprint` is computed."""


@dataclass(frozen=True, slots=True)
class Files:
    """Image files below a folder.

    Args:
        root: the folder.
        paths: relative paths, as bytes, in one Arrow array: Python strings would take several times the memory,
            and worker processes would copy them page by page.
    """

    root: str
    paths: pa.LargeBinaryArray

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> BinaryIO:
        """Open the file."""
        return open(self._path(index), "rb")

    def short(self, index: int) -> str:
        """The file's path below the folder."""
        return shown(os.fsdecode(self.paths[index].as_py()))

    def name(self, index: int) -> str:
        """The file's path."""
        return shown(self._path(index))

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """The files' paths below the folder, and their sizes."""
        root = os.fsencode(self.root)
        with Waiting("reading file sizes", len(self)) as waiting:
            for path in self.paths:
                yield path.as_py(), _file_size(os.path.join(root, path.as_py()))
                waiting.add(1)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[index].as_py()))


@dataclass(frozen=True, slots=True)
class Rows:
    """Images in a column of an Arrow table: bytes, or a struct of bytes and path as on the Hub.

    Args:
        label: the table's name, for messages.
        table: a `pyarrow.Table`, or a memory-mapped table of `datasets`.
        column: the name of the images' column.
        folders: the folders in which to look for files that rows name.
    """

    label: str
    table: Any
    column: str
    folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def _row(self, index: int) -> dict[str, Any]:
        value = self.table.column(self.column)[index].as_py()
        if isinstance(value, dict):
            return value
        return {"path": value} if isinstance(value, str) else {"bytes": value}

    def open(self, index: int) -> BinaryIO:
        """Open the row's bytes, or the file that the row names."""
        row = self._row(index)
        content, path = row.get("bytes"), row.get("path")
        if content is None and isinstance(path, str) and path:
            return open(self._file(path), "rb")
        if content is not None and not isinstance(content, bytes):
            raise ImageError(f"expected bytes or a file path, got {type(content).__name__}")
        return io.BytesIO(content or b"")

    def _file(self, path: str) -> str:
        """The path of a file that a row names."""
        places = [os.path.join(folder, path) for folder in self.folders]
        return next(filter(os.path.exists, places), path)

    def short(self, index: int) -> str:
        """The row's number, with the path if the row has one."""
        path = self._row(index).get("path")
        return f"row {index}" + (f" ({shown(str(path))})" if path else "")

    def name(self, index: int) -> str:
        """The same, with the table's name."""
        return f"{self.label}, {self.short(index)}"

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """The paths that rows name, and the sizes of their bytes or files."""
        for chunk in self.table.column(self.column).chunks:
            contents, paths = chunk, chunk
            if pa.types.is_struct(chunk.type):
                contents, paths = (_field(chunk, name) for name in ("bytes", "path"))
            for path, size in zip(_texts(paths), _lengths(contents), strict=True):
                if path and size is None:
                    size = _file_size(self._file(os.fsdecode(path)))
                yield path or b"", size or 0


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images that are already decoded.

    Args:
        label: the array's name, for messages.
        images: (N, C, H, W) uint8.
    """

    label: str
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> BinaryIO:
        """The image as an open .npy file."""
        file = io.BytesIO()
        np.save(file, self.images[index].permute(1, 2, 0).numpy())
        file.seek(0)
        return file

    def short(self, index: int) -> str:
        """The image's number."""
        return f"image {index}"

    def name(self, index: int) -> str:
        """The same, with the array's name."""
        return f"{self.label}, {self.short(index)}"

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """The images' sizes; they have no names."""
        yield from [(b"", self.images[0].numel())] * len(self)


def _file_size(path: str | bytes) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # a broken image, which is reported when it is read
        return 0


def _field(rows: pa.StructArray, name: str) -> pa.Array:
    """A field of all rows; nulls if there is no such field."""
    found = rows.type.get_field_index(name)
    return pa.nulls(len(rows)) if found < 0 else pc.struct_field(rows, found)


def _texts(values: pa.Array) -> list[bytes | None]:
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return list(values.cast(pa.large_binary()).to_pylist()) if is_text else [None] * len(values)


def _lengths(values: pa.Array) -> list[int | None]:
    is_bytes = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    return list(pc.binary_length(values).to_pylist()) if is_bytes else [None] * len(values)
