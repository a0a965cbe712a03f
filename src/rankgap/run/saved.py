"""What `config.yaml` says of a run: all that was resolved, as it is written and as it is read again."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rankgap.errors import UserError
from rankgap.run.config import TrainConfig
from rankgap.run.reader import read
from rankgap.run.recipes import Recipe, with_map_options
from rankgap.run.work import Work

FORMAT = 2  # of config.yaml; rankgap 0.1 wrote none
_LIBRARIES = ("rankgap", "torch", "torchvision", "timm", "lightning", "torchmetrics", "datasets", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """What the encoder is, and what it takes.

    Args:
        backbone: its name.
        channels: channels of an image.
        size: side of a view in pixels.
        mean: of each channel in [0, 1], to normalise with.
        std: standard deviation of each channel in [0, 1].
    """

    backbone: str
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRun:
    """A run as its folder keeps it.

    Args:
        format: version of the file's format.
        title: what the run is called in tables.
        run: what it was asked to be.
        model: its encoder.
        recipe: what it is trained with, the options of its own maps included.
        work: its size.
        notes: what was chosen and why, a sentence each.
        warnings: what is known to fail, a sentence each.
        versions: of the libraries that it was made with.
        commit: of rankgap's own checkout, where it ran from one.
    """

    format: int
    title: str
    run: TrainConfig
    model: SavedModel
    recipe: Recipe
    work: Work
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str]
    commit: str | None = None

    @classmethod
    def read(cls, values: object, where: str) -> Self:
        """A saved run from plain values.

        Args:
            values: as YAML gives them.
            where: what an error calls the file.

        Raises:
            UserError: another format, or a value that does not belong there; its place is named.
        """
        if not isinstance(values, dict) or "run" not in values or "recipe" not in values:
            raise UserError(f"{where} is not a run's configuration")
        if (version := values.get("format")) != FORMAT:
            written = "rankgap 0.1" if version is None else f"another version of rankgap (format {version!r})"
            raise UserError(
                f"{where} was written by {written}, and format {FORMAT} is read here: train the run again"
            )
        saved = read(cls, values, where)
        return replace(saved, recipe=with_map_options(saved.recipe, f"{where}.recipe"))


def library_versions() -> dict[str, str]:
    """The versions of rankgap and of what it stands on, as installed."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def checkout_commit() -> str | None:
    """The commit of rankgap's own checkout, where it runs from one."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
    )
    return found.stdout.strip() if found.returncode == tracked.returncode == 0 else None
