"""Finding the image files below a folder, except those that operating systems and rankgap itself create."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rankgap.data.names import shown
from rankgap.data.waiting import Waiting

_FORMATS = "jpg jpeg jpe jfif png bmp gif webp avif jp2 tif tiff tga ppm pgm pbm pnm npy"
SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
SOFTWARE = "rankgap"  # the software that our own pictures name in their metadata

# Files that operating systems create, in lower case: thumbnails, bins, settings. Dot files count too.
_SYSTEMS = (
    "__macosx/@eadir/@tmp/#recycle/#snapshot/@recycle/@recently-snapshot/$recycle.bin/recycler/recycled/lost+found/"
    "system volume information/thumbs.db/ehthumbs.db/ehthumbs_vista.db/desktop.ini/icon\r/zbthumbnail.info/"
    "picasa.ini/__pycache__"
)
_DEBRIS = frozenset(_SYSTEMS.split("/"))
_MARK = b"Software\0" + SOFTWARE.encode()
_MARKED_WITHIN = 256  # bytes from the beginning of a PNG
_FEW = 1_000  # PNG files of one folder to open, to see whether they are ours


@dataclass(slots=True)
class Scan:
    """What lies below a folder.

    Attributes:
        paths: image files relative to the folder, with slashes, sorted.
        others: suffix in small letters -> other files.
        own: pictures and run folders of rankgap, which are left out.
        closed: folders that cannot be opened, and why.
    """

    paths: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    own: int = 0
    closed: list[str] = field(default_factory=list)


def scan(root: Path) -> Scan:
    """Find the image files below a folder, at any depth; links are followed, each folder is read once."""
    found = Scan()
    seen: set[tuple[int, int]] = set()
    folders = [""]  # relative, with a slash at the end
    with Waiting("looking for images") as waiting:
        while folders:
            relative = folders.pop()
            try:
                status = os.stat(root / relative)
                if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(root / relative) as entries:
                    kept = [entry for entry in entries if not is_debris(entry.name)]
            except OSError as error:
                found.closed.append(f"{shown(relative)} ({error.strerror})")
                continue
            if relative and _is_run({entry.name for entry in kept}):
                found.own += 1
                continue
            # By name, so that of two links to a folder the same one always counts.
            folders += sorted(_read_folder(root, relative, kept, found), reverse=True)
            waiting.add(len(kept))
    found.paths.sort()
    return found


def _read_folder(root: Path, relative: str, entries: list[os.DirEntry[str]], found: Scan) -> Iterator[str]:
    """Sort the entries of a folder into what is found; yields its subfolders."""
    images = []
    holds_runs = False
    for entry in entries:
        if _is_folder(entry):
            yield f"{relative}{entry.name}/"
            holds_runs = holds_runs or os.path.isfile(os.path.join(entry.path, "metrics.csv"))
        elif (suffix := os.path.splitext(entry.name)[1].lower()) not in SUFFIXES:
            found.others[suffix] += 1
        elif _is_readable(entry):
            images.append(entry)
    # Our pictures are written next to runs and into the working directory, which may be the data's folder.
    if not relative or holds_runs:
        ours = {e.name for e in images[:_FEW] if e.name.lower().endswith(".png") and _is_ours(e.path)}
        found.own += len(ours)
        images = [entry for entry in images if entry.name not in ours]
    found.paths += [relative + entry.name for entry in images]


def is_debris(name: str) -> bool:
    """Whether operating systems create files or folders of this name, which are not data."""
    return name.startswith(".") or name.lower() in _DEBRIS


def _is_run(names: set[str]) -> bool:
    return "config.yaml" in names and not names.isdisjoint({"metrics.csv", "checkpoints", "results.json"})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a dangling link (a broken image), and not a pipe, which never ends."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _is_ours(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _MARK in file.read(_MARKED_WITHIN)
    except OSError:
        return False
