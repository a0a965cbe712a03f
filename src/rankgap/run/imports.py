"""Python modules and files that a run needs: those that define its gains and maps (`--import`).

A run records their names. Reading a run never imports them, because its folder may come from someone else. Only a
command line or a configuration that names them does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankgap.errors import UserError


def located(name: str) -> str:
    """A module's name unchanged, or a file's absolute path (mine.py), so that it is found from any folder."""
    return os.path.abspath(name) if name.endswith(".py") else name


def import_all(names: Iterable[str]) -> None:
    """Import modules and files, each once in a process.

    Args:
        names: names of modules, or paths of files.

    Raises:
        UserError: one that does not exist or is not Python.
    """
    for name in names:
        _import(located(name))


@contextmanager
def saying_what_to_import(names: Iterable[str]) -> Iterator[None]:
    """Add to an error which of a run's modules have not been imported.

    Args:
        names: the modules and files that the run names.
    """
    try:
        yield
    except UserError as error:
        if lacking := [name for name in names if located(name) not in _IMPORTED]:
            said = f"the run was trained with --import {' --import '.join(lacking)}: pass it again"
            raise UserError(f"{error}; {said}") from error
        raise


_IMPORTED: set[str] = set()


@functools.cache
def _import(name: str) -> None:
    try:
        if name.endswith(".py"):
            _run_file(Path(name))
        else:
            importlib.import_module(name)
    except (ImportError, SyntaxError, OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        known = name.endswith(".py") or not Path(f"{name}.py").is_file()
        remedy = "" if known else f"; for the file in this folder, pass --import {name}.py"
        raise UserError(f"--import {name} failed: {reason}{remedy}") from error
    _IMPORTED.add(name)


def _run_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Worker processes find its functions by its name; a module of that name that is loaded already stays.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
