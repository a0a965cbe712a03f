"""Weights in a file, for any program that builds the network itself."""

from __future__ import annotations

from rankgap.exporting.format import PREPROCESSING, Format, in_folder, some_images
from rankgap.exporting.source import Exported
from rankgap.exporting.to_timm import register, registering


def _loads(exported: Exported) -> list[str]:
    built = exported.architecture
    arguments = "".join(f", {name}={value!r}" for name, value in built.arguments.items())
    made = f"{built.name}()  # your own class" if built.own else f'timm.create_model("{built.name}"{arguments})'
    return [
        "import sys, torch" if built.own else "import sys, timm, torch",
        *([f"from {built.own} import {built.name}"] if built.own else []),
        "from safetensors.torch import load_file",
        *in_folder(exported, PREPROCESSING, *registering(exported)),
        f"encoder = {made}",
        'encoder.eval().load_state_dict(load_file(f"{folder}/model.safetensors"))',
        some_images(exported),
        "features = encoder(Preprocessing.of(folder)(images))",
    ]


SAFETENSORS = Format(about="weights alone", library="pytorch", loads=_loads, write=register, own=True)
