"""Writing files: completely or not at all, with the file or folder named in every error."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rankgap.errors import unusable


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn errors of the system into a `UserError` about a file or folder; not all of them name it (a full disk).

    Raises:
        UserError: writing fails; the message names the file or folder, the reason and a remedy.
    """
    try:
        yield
    except OSError as error:
        raise unusable(error, place) from error
    except RuntimeError as error:  # torch.save hits the error, then fails to complete its file
        if isinstance(error.__context__, OSError):
            raise unusable(error.__context__, place) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write. It replaces the old one once it is complete; after an error, the old one is unchanged.

    Raises:
        UserError: as in `writing`.
    """
    if path.exists() and not path.is_file():  # a device or a pipe is written in place; a folder is an error
        with writing(path), path.open("wb") as file:
            yield file
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as file:
        file.write(content)


def replace_copy(source: Path, path: Path) -> None:
    """Copy a file completely or not at all."""
    with source.open("rb") as original, replacing(path) as copy:
        shutil.copyfileobj(original, copy)


def check_writable(folder: Path) -> None:
    """Check, before any work is done, that files can be written to a folder, which may not exist yet.

    Raises:
        UserError: they cannot be.
    """
    with writing(folder):
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for place in missing:
            place.rmdir()
