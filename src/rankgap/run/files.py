"""Writing files: completely or not at all, and with the place in every refusal of the system."""

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
    """Name a place in the system's refusals, which do not always: a write to a full disk does not.

    Raises:
        UserError: the system refuses; the message names the place, the reason and a remedy.
    """
    try:
        yield
    except OSError as error:
        raise unusable(error, place) from error
    except RuntimeError as error:  # torch.save meets the refusal, and then fails to complete its file
        if isinstance(error.__context__, OSError):
            raise unusable(error.__context__, place) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes the place of the old one once it is complete, and leaves it alone otherwise.

    Raises:
        UserError: the system refuses, as `writing` says.
    """
    if path.exists() and not path.is_file():  # a device or a pipe is written to; a folder refuses
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
    """Check, before any work is done, that files can be written to a folder, which need not exist.

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
