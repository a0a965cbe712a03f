"""A folder of image files as a data set."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from rankgap.data.containers import Files
from rankgap.data.names import shown
from rankgap.data.scanning import SUFFIXES, Scan, scan
from rankgap.data.splits import MissingDataError, Source, Split

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


def open_folder(folder: str) -> Source:
    """Image files below a folder, at any depth, in the order of their paths.

    The folder is read as the first of these that applies; a folder that holds nothing but another one counts as
    that other one:

    * a set with splits, if DIR/train (or training) holds images, and DIR/test (or else testing, val, valid,
      validation) does too or no other folder does. Names that contain these words (seg_train, seg_test) do as
      well if there are no other folders. The folders in DIR/train are the classes if there are two or more and
      every image lies below one of them;
    * classes, if every image is DIR/<class>/<file> and there are two classes or more. Labels are used for
      evaluation only;
    * images without labels.

    Names that differ in their Unicode form alone are one class. Hidden files and folders, what systems leave
    (Thumbs.db, __MACOSX, @eaDir) and what rankgap wrote (run folders, its pictures) are skipped, and links are
    followed.

    Args:
        folder: DIR, with ~ for the home folder.

    Raises:
        MissingDataError: there is no such folder, or no image in it.
    """
    root = Path(folder).expanduser()
    name = f"folder:{shown(folder)}"
    if not root.is_dir():
        raise MissingDataError(f"{name}: there is no folder {shown(str(root))}")
    found = scan(root)
    if not found.paths:
        there = f", only {_kinds(found.others)}" if found.others else ""
        raise MissingDataError(
            f"{name}: no images in it{there}; expected files that end in {', '.join(sorted(SUFFIXES))}"
        )
    notes = [f"{name}: {text}" for text in _left_out(found)]
    place = _Place(root, found.paths)
    while (split := _find_split(place)) is None and (inner := place.inner()) is not None:
        place = inner
    if split is not None:
        return _split_source(name, place, *split, notes)
    classes, reason = _classes(place.paths, depth=1)
    labels = f"{len(classes)} classes (its folders; labels are for evaluation only)" if classes else "no labels"
    notes.append(f"{name}: {len(place.paths)} images, {labels}{reason}")
    if held_out := _held_out(place):
        notes.append(
            f"{name}: the images in {shown(held_out)}/ are trained on as well; to keep them apart, name the "
            "folders train and test, or pass --data folder:DIR for the training images alone"
        )
    return Source(name, _split(place, classes), None, notes)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder, and the image files below it by relative path."""

    root: Path
    paths: list[str]

    def heads(self) -> list[str]:
        """The folders in it that hold images, sorted."""
        return sorted({path.partition("/")[0] for path in self.paths if "/" in path})

    def below(self, head: str) -> _Place:
        """One of these folders."""
        return _Place(self.root / head, [p.partition("/")[2] for p in self.paths if p.startswith(head + "/")])

    def inner(self) -> _Place | None:
        """Its only folder, if it holds nothing else."""
        heads = self.heads()
        alone = len(heads) == 1 and all("/" in path for path in self.paths)
        return self.below(heads[0]) if alone else None


def _kinds(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {shown(suffix) or 'without suffix'}" for suffix, count in others.most_common(4))


def _left_out(found: Scan) -> list[str]:
    texts = []
    if found.others:
        count = found.others.total()
        files = "other file is" if count == 1 else "other files are"
        texts.append(f"{count:,} {files} ignored ({_kinds(found.others)})")
    if found.own:
        own = "picture or run folder" if found.own == 1 else "pictures or run folders"
        texts.append(f"{found.own:,} {own} that rankgap wrote {'is' if found.own == 1 else 'are'} left out")
    if found.closed:
        more = f" and {len(found.closed) - 1} more" if len(found.closed) > 1 else ""
        texts.append(f"a folder in it cannot be opened: {found.closed[0]}{more}")
    return texts


def _role(name: str) -> str | None:
    """The split that a word in a folder's name indicates: train, test or None."""
    words = re.split(r"[^a-z]+", name.lower())
    for role, known in (("train", TRAIN_FOLDERS), ("test", TEST_FOLDERS)):
        if any(word in known for word in words):
            return role
    return None


def _find_split(place: _Place) -> tuple[str, list[str]] | None:
    """The training folder and the test folders, the preferred one first, if the names are such."""
    heads = place.heads()
    trains = [head for head in heads if head.lower() in TRAIN_FOLDERS]
    tests = [head for known in TEST_FOLDERS for head in heads if head.lower() == known]
    if len(trains) == 1 and (tests or len(heads) == 1):
        return trains[0], tests
    trains, tests = ([head for head in heads if _role(head) == role] for role in ("train", "test"))
    if len(trains) == 1 and tests and len(heads) == 1 + len(tests):
        return trains[0], sorted(tests, key=lambda head: "test" not in head.lower())
    return None


def _held_out(place: _Place) -> str | None:
    """A folder that looks like a test set, among folders that are not read as splits."""
    heads = place.heads()
    has_train = any(_role(head) == "train" for head in heads)
    return next((h for h in heads if _role(h) == "test" and (has_train or h.lower() in TEST_FOLDERS)), None)


def _split_source(name: str, place: _Place, train: str, tests: Sequence[str], notes: list[str]) -> Source:
    inside = {}
    for head in (train, *tests):
        below = place.below(head)
        if below.heads() == [head] and (inner := below.inner()):  # seg_train/seg_train
            below = inner
        inside[head] = below
    classes, reason = _classes(inside[train].paths)
    # A validation folder with classes goes before a test folder without them (as in ImageNet).
    test = next((t for t in tests if _classes(inside[t].paths, least=1)[0]), tests[0] if tests else None)
    text = f"{name}: {len(inside[train].paths)} training images in {shown(train)}/, "
    text += f"{len(classes)} classes" if classes else f"no labels{reason}"
    test_split = None
    if test is not None:
        test_classes, why = _classes(inside[test].paths, least=1) if classes else (None, "")
        text += f"; {len(inside[test].paths)} test images in {shown(test)}/"
        if classes and test_classes is None:
            text += f", without labels{why}"
        if classes and (foreign := [c for c in test_classes or () if c not in classes]):
            classes = [*classes, *foreign]
            text += f", some of classes without training images ({', '.join(map(shown, foreign[:4]))})"
        test_split = _split(inside[test], classes if test_classes else None)
    notes.append(text)
    used = sum(len(inside[head].paths) for head in (train, test) if head is not None)
    if left := len(place.paths) - used:
        which = "1 image in another place is" if left == 1 else f"{left:,} images in other places are"
        notes.append(f"{name}: {which} ignored")
    return Source(name, _split(inside[train], classes), test_split, notes)


def _class_of(path: str) -> str:
    """The first folder of a path, in a Unicode form that is the same on every system."""
    return unicodedata.normalize("NFC", path.partition("/")[0])


def _classes(paths: Sequence[str], *, least: int = 2, depth: int | None = None) -> tuple[list[str] | None, str]:
    """The first folders of all paths if they can be classes, otherwise None; and the reason, in doubtful cases.

    Args:
        paths: relative to where the classes would be.
        least: the smallest number of classes.
        depth: the number of folders that each path must have; None for one or more.
    """
    unfit = [p for p in paths if (p.count("/") != depth if depth else "/" not in p)]
    found = sorted({_class_of(p) for p in paths if "/" in p})
    if len(found) < least:
        return None, ""
    if not unfit:
        return found, ""
    if 2 * len(unfit) > len(paths):
        return None, ""
    others = f" and {len(unfit) - 1:,} more" if len(unfit) > 1 else ""
    where = "lies deeper than" if "/" in unfit[0] else "lies beside"
    return None, f", because {shown(unfit[0])}{others} {where} the folders that would be classes"


def _split(place: _Place, classes: list[str] | None) -> Split:
    labels = None
    if classes is not None:
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[_class_of(path)] for path in place.paths])
    paths = pa.array([os.fsencode(path) for path in place.paths], pa.large_binary())
    return Split(Files(str(place.root), paths), labels, None if classes is None else [shown(c) for c in classes])
