"""A folder of image files as a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from rankgap.data.encoded import Files
from rankgap.data.splits import Source, Split
from rankgap.errors import UserError

_FORMATS = "jpg jpeg jpe jfif png bmp gif webp avif jp2 tif tiff tga ppm pgm pbm pnm npy"
SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
TEST_FOLDERS = ("test", "val", "valid", "validation")


def open_folder(folder: str) -> Source:
    """Image files below a folder, at any depth, in the order of their paths.

    The folder is read as the first of these that applies:

    * a set with splits, if DIR/train holds images, and DIR/test (or else val, valid, validation) does too or no
      other folder does. The folders in DIR/train are the classes if there are two or more and every image lies
      below one of them;
    * classes, if every image is DIR/<class>/<file> and there are two classes or more. Labels are used for
      evaluation only;
    * images without labels.

    Hidden files and folders are skipped, and links are followed.

    Args:
        folder: DIR, with ~ for the home folder.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    root = Path(folder).expanduser()
    name = f"folder:{folder}"
    if not root.is_dir():
        raise UserError(f"{name}: there is no folder {root}")
    paths, others = _scan(root)
    if not paths:
        raise UserError(f"{name}: no images in it; expected files that end in {', '.join(sorted(SUFFIXES))}")
    notes = []
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(4))
        notes.append(f"{name}: {others.total()} other files are ignored ({kinds})")
    heads = {head.lower(): head for path in paths if "/" in path for head in [path.partition("/")[0]]}
    tests = [heads[t] for t in TEST_FOLDERS if t in heads]
    if "train" in heads and (tests or len(heads) == 1):
        return _split_source(name, root, paths, heads["train"], tests, notes)
    classes = _classes(paths, depth=1)
    labels = f"{len(classes)} classes (its folders; labels are for evaluation only)" if classes else "no labels"
    notes.append(f"{name}: {len(paths)} images, {labels}")
    return Source(name, _split(root, paths, classes), None, notes)


def _split_source(
    name: str, root: Path, paths: list[str], train: str, tests: Sequence[str], notes: list[str]
) -> Source:
    inside = {head: [p.partition("/")[2] for p in paths if p.startswith(head + "/")] for head in (train, *tests)}
    classes = _classes(inside[train])
    # A validation folder with classes goes before a test folder without them (as in ImageNet).
    test = next((t for t in tests if _classes(inside[t], least=1)), tests[0] if tests else None)
    text = f"{name}: {len(inside[train])} training images in {train}/, "
    text += f"{len(classes)} classes" if classes else "no labels"
    test_split = None
    if test is not None:
        test_classes = _classes(inside[test], least=1) if classes else None
        test_split = _split(root / test, inside[test], test_classes)
        text += f"; {len(inside[test])} test images in {test}/"
    notes.append(text)
    used = sum(len(inside[head]) for head in (train, test) if head is not None)
    if used < len(paths):
        notes.append(f"{name}: {len(paths) - used} images in other places are ignored")
    return Source(name, _split(root / train, inside[train], classes), test_split, notes)


def _scan(root: Path) -> tuple[list[str], Counter[str]]:
    """The relative paths of image files, sorted, and the suffixes of all other files."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(f for f in subfolders if not f.startswith("."))
        relative = Path(folder).relative_to(root)
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if suffix in SUFFIXES:
                paths.append((relative / file).as_posix())
            else:
                others[suffix] += 1
    return sorted(paths), others


def _classes(paths: Sequence[str], *, least: int = 2, depth: int | None = None) -> list[str] | None:
    """The first folders of all paths if they can be classes, else None.

    Args:
        paths: relative to where the classes would be.
        least: the smallest number of classes.
        depth: the number of folders that each path must have; None for one or more.
    """
    if any(p.count("/") != depth if depth else "/" not in p for p in paths):
        return None
    found = sorted({p.partition("/")[0] for p in paths})
    return found if len(found) >= least else None


def _split(root: Path, paths: list[str], classes: list[str] | None) -> Split:
    labels = None
    if classes is not None:
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[p.partition("/")[0]] for p in paths])
    return Split(Files(str(root), pa.array(paths, pa.string())), labels, classes)
