"""For timm: the weights under timm's names, with the description that `timm.create_model` reads."""

from __future__ import annotations

from pathlib import Path

from rankgap.exporting.format import PREPROCESSING, Format, in_folder, some_images
from rankgap.exporting.source import Exported


def register(exported: Exported, folder: Path) -> list[str]:
    """Write the file that registers the architecture with timm, if timm lacks it."""
    built = exported.architecture
    if built.code:
        (folder / f"{built.name}.py").write_text(built.file)
    return []


def registering(exported: Exported) -> list[str]:
    """The line that imports that file, if there is one."""
    built = exported.architecture
    return [f"import {built.name}  # registers the architecture with timm"] if built.code else []


def _loads(exported: Exported) -> list[str]:
    return [
        "import sys, timm, torch",
        *in_folder(exported, PREPROCESSING, *registering(exported)),
        'encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()',
        some_images(exported),
        "features = encoder(Preprocessing.of(folder)(images))",
    ]


TIMM = Format(about="a model for timm", library="timm", loads=_loads, write=register, tags=("timm",))
