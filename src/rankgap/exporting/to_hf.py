"""For the Hugging Face Hub: a class that `PyTorchModelHubMixin.from_pretrained` fills."""

from __future__ import annotations

import inspect
from pathlib import Path

from rankgap.exporting.architecture import IMPORTS
from rankgap.exporting.format import Format, in_folder, some_images
from rankgap.exporting.preprocessing import Preprocessing
from rankgap.exporting.source import Exported

FILE = "encoder.py"
_HEAD = '''"""The encoder of this folder: Encoder.from_pretrained(FOLDER), or the name of a repository of the Hub.

Needs torch, timm, safetensors and huggingface_hub alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
'''
_CLASS = '''

class Encoder(nn.Module, PyTorchModelHubMixin):
    """Normalised views (B, C, S, S) -> features (B, F); `preprocess` makes views of images (B, C, H, W)."""

    def __init__(self, architecture: str, model_args: dict, preprocessing: dict) -> None:
        super().__init__()
        self.network = timm.create_model(architecture, **model_args)
        self.preprocess = Preprocessing(**preprocessing)

    def forward(self, views: Tensor) -> Tensor:
        return self.network(views)
'''


def _write(exported: Exported, folder: Path) -> list[str]:
    imports = IMPORTS.replace("from torch import nn", "from torch import Tensor, nn")
    imports = imports.replace("import timm\n", "import timm\nfrom huggingface_hub import PyTorchModelHubMixin\n")
    parts = [inspect.getsource(Preprocessing).rstrip()]
    if code := exported.architecture.code:
        parts.append(code.rstrip())
    (folder / FILE).write_text(f"{_HEAD}{imports}\n\n" + "\n\n\n".join(parts) + "\n" + _CLASS)
    return []


def _loads(exported: Exported) -> list[str]:
    return [
        "import sys, torch",
        *in_folder(exported, "from encoder import Encoder"),
        "encoder = Encoder.from_pretrained(folder).eval()",
        some_images(exported),
        "features = encoder(encoder.preprocess(images))",
    ]


HF = Format(
    about="a model for PyTorchModelHubMixin",
    library="pytorch",
    loads=_loads,
    write=_write,
    prefix="network.",
    tags=("model_hub_mixin", "pytorch_model_hub_mixin"),
)
