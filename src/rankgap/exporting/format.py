"""A format: what a folder holds besides the weights, config.json and the card, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankgap.exporting.source import Exported

PREPROCESSING = "from preprocessing import Preprocessing"


def _nothing(exported: Exported, folder: Path) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One row of the formats.

    Args:
        about: the format in words, for the card.
        library: the library that loads it, as the Hugging Face Hub names it.
        loads: the lines of Python, ten at most, that make `features` of `images`.
        write: writes the files that only this format has; returns sentences for the user.
        graph: whether it holds a graph, which may have the preprocessing inside.
        own: whether it can hold a network that is the user's own module.
        prefix: of the names of the weights.
        tags: tags of the card.
    """

    about: str
    library: str
    loads: Callable[[Exported], Sequence[str]]
    write: Callable[[Exported, Path], list[str]] = _nothing
    graph: bool = False
    own: bool = False
    prefix: str = ""
    tags: tuple[str, ...] = ()


def in_folder(exported: Exported, *imports: str) -> list[str]:
    """The lines of a snippet that name the folder, and import Python files from it.

    Args:
        exported: the encoder.
        imports: the imports.
    """
    hub = "" if exported.hub is None else f', or huggingface_hub.snapshot_download("{exported.hub}")'
    path = ["sys.path.insert(0, folder)"] if imports else []
    return [f'folder = "."  # this folder{hub}', *path, *imports]


def some_images(exported: Exported, library: str = "torch") -> str:
    """The line of a snippet that makes images, as the preprocessing takes them.

    Args:
        exported: the encoder.
        library: torch or np.
    """
    values, channels = exported.described()["values"], exported.saved.model.channels
    shape = f"(2, {channels}, 120, 160)"
    made = f"{library}.ones({shape}, dtype={library}.{values})"
    return f"images = {made}  # yours: (B, {channels}, H, W)"
