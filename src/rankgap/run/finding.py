"""The runs at the paths that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankgap.errors import UserError
from rankgap.run.folder import RunFolder, no_run


def find_runs(paths: Sequence[Path]) -> tuple[list[RunFolder], list[str]]:
    """The runs at some paths. A path is a run folder, or a folder with runs below it, which are sorted by name.

    Returns:
        The runs, and the skipped folders, each with the reason.

    Raises:
        UserError: there are no paths, or there is no run at or below one of them.
    """
    if not paths:
        raise UserError("expected at least one run folder, or folder of runs, and got none")
    runs: list[RunFolder] = []
    skipped: list[str] = []
    for path in paths:
        if RunFolder(path).config_file.is_file():
            runs.append(RunFolder(path))
            continue
        found, reasons, candidates = [], [], list(_folders_with_config(path))
        for folder in candidates:
            try:
                folder.saved()
            except UserError as error:  # another program's config.yaml, or a damaged one of ours
                reasons.append(str(error))
            else:
                found.append(folder)
        if not path.exists():
            raise UserError(no_run(path))
        if not found:
            reason = reasons[0] if reasons else "it has no config.yaml, nor does any folder below it"
            raise UserError(f"{path} is not a run folder: {reason}")
        parents = {parent for folder in candidates for parent in (folder.path, *folder.path.parents)}
        below = (child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
        empty = sorted(child for child in below if child not in parents)
        runs += found
        skipped += [*reasons, *(f"{child} contains no run" for child in empty)]
    return runs, skipped


def _folders_with_config(path: Path) -> Iterator[RunFolder]:
    """Folders below a path that have a `config.yaml`, sorted by name; they are not searched further."""
    for folder, below, files in os.walk(path):
        if "config.yaml" in files:
            yield RunFolder(Path(folder))
            below.clear()
        below.sort()
