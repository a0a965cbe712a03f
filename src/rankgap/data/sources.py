"""Opening a data spec: from its text to the splits that it names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from rankgap.data.containers import Arrays
from rankgap.data.folders import open_folder
from rankgap.data.hub import open_hub
from rankgap.data.splits import MissingDataError, Source, Split, Statistics
from rankgap.errors import UserError, unknown

GIVEN = "given"  # a run folder's name for images that came from Python
KNOWN = ("digits", "cifar10", "cifar100", "folder:DIR", "hf:NAME_OR_DIR")

# Per-channel mean and standard deviation of the training images, as the published recipes use them.
_CIFAR: dict[str, Statistics] = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def open_source(spec: str) -> Source:
    """Find the data set that a spec names, without decoding it.

    Args:
        spec: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR.

    Raises:
        UserError: there is no such data set, or it cannot be reached.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "folder" and rest:
        return open_folder(rest)
    if kind == "hf" and rest:
        return open_hub(rest)
    if spec == "digits":
        return _digits()
    if spec == GIVEN:
        raise MissingDataError("the run's images were passed from Python and are not on disk")
    if spec in _CIFAR:
        return _cifar(spec)
    if not colon and Path(spec).is_dir():
        raise UserError(f"{spec} is a folder: write folder:{spec} for image files, or hf:{spec} for Parquet files")
    raise unknown("data set", spec, KNOWN)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(data.target.astype(np.int64))
    # Every fifth image of each digit, in the set's own order, is a test image: stratified, and the same
    # everywhere.
    place = torch.zeros(len(labels), dtype=torch.int64)
    for digit in range(10):
        rows = torch.nonzero(labels == digit).squeeze(1)
        place[rows] = torch.arange(len(rows))
    test = place % 5 == 4
    classes = [str(name) for name in data.target_names]
    train_count, test_count = int((~test).sum()), int(test.sum())
    note = f"digits: {train_count} training and {test_count} test images (every fifth image of each digit)"
    return Source(
        "digits",
        Split(Arrays("digits train", images[~test]), labels[~test], classes),
        Split(Arrays("digits test", images[test]), labels[test], classes),
        [note],
    )


def data_root() -> Path:
    """The folder of downloads: $RANKGAP_DATA, or ~/.cache/rankgap."""
    return Path(os.environ.get("RANKGAP_DATA") or "~/.cache/rankgap").expanduser()


def _cifar(name: str) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind: type[CIFAR10] = CIFAR10 if name == "cifar10" else CIFAR100
    root = data_root()
    splits = []
    for train in (True, False):
        try:
            found = kind(root, train=train, download=True)
        except (OSError, RuntimeError) as error:  # no network, no space, or a file that is not the published one
            raise UserError(
                f"{name} is not in {root} and cannot be downloaded ({error}); put {kind.filename} there, or set "
                "RANKGAP_DATA to the folder that holds it"
            ) from error
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        label = f"{name} {'train' if train else 'test'}"
        splits.append(Split(Arrays(label, images), torch.tensor(found.targets), list(found.classes)))
    return Source(name, splits[0], splits[1], statistics=_CIFAR[name])
