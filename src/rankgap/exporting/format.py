"""A format: what a folder holds besides the weights, config.json and the card, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankgap.exporting.source import Exported


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
    """

    about: str
    library: str
    loads: Callable[[Exported], Sequence[str]]
    write: Callable[[Exported, Path], list[str]] = _nothing
    graph: bool = False
    own: bool = False
    prefix: str = ""


def in_folder(exported: Exported) -> list[str]:
    """The lines of a snippet that name the folder, and make its Python files importable."""
    hub = "" if exported.hub is None else f', or huggingface_hub.snapshot_download("{exported.hub}")'
    return [f'folder = "."  # this folder{hub}', "sys.path.insert(0, folder)"]


def random_images(exported: Exported) -> str:
    """The line that makes images, as the preprocessing takes them, for a snippet that runs as it is."""
    values, channels = exported.described()["values"], exported.saved.model.channels
    shape = f"(2, {channels}, 120, 160)"
    most = {"uint8": 256}.get(values, 4096)
    made = f"torch.randint(0, {most}, {shape}, dtype=torch.{'int32' if values == 'int32' else 'uint8'})"
    if values == "float32":
        made = f"torch.rand{shape}"
    return f"images = {made}  # yours: (B, {channels}, H, W), {values}"
