"""The contents of `config.yaml`: everything that was resolved for a run, as written and as read back."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rankgap.data.fingerprint import Fingerprint
from rankgap.data.levels import Levels
from rankgap.data.splits import Statistics
from rankgap.errors import UserError, check_within
from rankgap.model.encoder_options import Stem
from rankgap.model.methods import Method, design
from rankgap.run.config import TrainConfig
from rankgap.run.imports import saying_what_to_import
from rankgap.run.reader import read
from rankgap.run.recipes import Recipe, with_map_options
from rankgap.run.work import Work
from rankgap.views.view_config import LARGEST_VIEW

FORMAT = 2  # of config.yaml; rankgap 0.1 wrote none. Later versions must read 2, whatever they write.
_LIBRARIES = ("rankgap", "torch", "torchvision", "timm", "lightning", "torchmetrics", "datasets", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """The encoder, and the images that it takes.

    Args:
        backbone: name of the encoder.
        channels: channels of an image.
        size: side of a view in pixels.
        mean: mean of each channel in [0, 1], for normalisation.
        std: standard deviation of each channel in [0, 1].
        levels: how the values of deep images (16 or 32 bits) become 0 ... 255; None if images have 8 bits.
        stem: the stem of a ResNet, which pretrained weights may decide.
        centre: the side of the central square that evaluation sees, as a share of an image's shorter side: 7/8 of
            photographs, whose views are cut out of the originals, else 1.
    """

    backbone: str
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: Levels | None = None
    stem: Stem = "auto"
    centre: float = 1.0

    def __post_init__(self) -> None:
        check_within(self, channels=(1, 2**16), size=(2, LARGEST_VIEW), std=(1e-9, 1e9), mean=(-1e9, 1e9))
        check_within(self, centre=(0.1, 1.0))
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(f"mean and std must have one number for each of the {self.channels} channels")
        if self.levels is not None and len(self.levels.low) != self.channels:
            raise UserError(f"levels must have one pair of numbers for each of the {self.channels} channels")

    @property
    def statistics(self) -> Statistics:
        """How other images are read as the run's were."""
        return Statistics(self.mean, self.std, self.levels)


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedData:
    """The fingerprints with which a run recognises its images.

    Args:
        train: the training images, before --limit.
        tests: the evaluation sets by name; the data's own is `test`.
    """

    train: Fingerprint
    tests: Mapping[str, Fingerprint]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRun:
    """A run as its folder keeps it.

    Args:
        format: version of the file's format.
        title: the run's name in tables.
        run: its configuration.
        model: its encoder.
        recipe: its recipe, including the options of the method's maps.
        work: its size.
        data: fingerprints of its images; None if unknown.
        notes: what was chosen and why, one sentence each.
        warnings: choices known to fail, one sentence each.
        versions: versions of the libraries that it was made with.
        commit: commit of rankgap's own checkout, if it ran from one.
    """

    format: int
    title: str
    run: TrainConfig
    model: SavedModel
    recipe: Recipe
    work: Work
    data: SavedData | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str]
    commit: str | None = None

    def method(self) -> Method:
        """Its method's row, filters included.

        Raises:
            UserError: its maps or gains are the user's own, and must be imported first.
        """
        with saying_what_to_import(self.run.imports):
            return design(self.run.method, online=self.run.online, target=self.run.target)

    @classmethod
    def read(cls, values: object, where: str) -> Self:
        """A saved run from plain values.

        Args:
            values: the values as YAML gives them.
            where: the file's name in an error.

        Raises:
            UserError: another format, or a wrong value, whose place the message names.
        """
        if not isinstance(values, dict) or "run" not in values or "recipe" not in values:
            raise UserError(f"{where} is not a run's configuration")
        if (version := values.get("format")) != FORMAT:
            written = "rankgap 0.1" if version is None else f"another version of rankgap (format {version!r})"
            raise UserError(
                f"{where} was written by {written}, but this version reads format {FORMAT}: train the run again"
            )
        saved = read(cls, values, where)
        with saying_what_to_import(saved.run.imports):
            return replace(saved, recipe=with_map_options(saved.recipe, f"{where}.recipe"))


def library_versions() -> dict[str, str]:
    """The installed versions of rankgap and of the libraries it builds on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def checkout_commit() -> str | None:
    """The commit of rankgap's own checkout, if it runs from one."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
    )
    return found.stdout.strip() if found.returncode == tracked.returncode == 0 else None
