"""An exported folder: written completely or not at all, and replaced only if an export wrote it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankgap.errors import UserError
from rankgap.run.files import check_writable, writing

CONFIG = "config.json"
OURS = "rankgap"  # key of config.json under which an export lists its files


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, before any work is done for it.

    Raises:
        UserError: there is something else than an empty folder, and either `overwrite` is not set, or it is not an
            export, or it holds files that no export wrote; or it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise UserError(f"{out} exists: use another --out, or replace it with --overwrite")
        if not (ours := _written(out)):
            raise UserError(f"{out} holds no export, so it is not overwritten: choose another --out")
        if foreign := sorted(path.name for path in out.iterdir() if path.name not in ours):
            raise UserError(f"{out} also holds {foreign[0]}, so it is not overwritten: choose another --out")
    check_writable(out.parent)


def _written(out: Path) -> set[str]:
    """What an export wrote, and what Python adds when it is loaded; empty if it is no export."""
    try:
        return {"__pycache__", *json.loads((out / CONFIG).read_bytes())[OURS]["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """A folder to fill. It takes its place once it is complete; after an error, what was there is unchanged.

    Raises:
        UserError: writing fails; the message names the folder, the reason and a remedy.
    """
    out = Path(os.path.realpath(out))
    partial, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("partial", "old"))
    try:
        with writing(out):
            partial.mkdir(parents=True)
            yield partial
            if out.exists():
                out.rename(old)
            partial.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
