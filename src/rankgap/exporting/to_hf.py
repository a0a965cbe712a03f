"""For the Hugging Face Hub: a class that `PyTorchModelHubMixin.from_pretrained` fills."""

from __future__ import annotations

import inspect
from pathlib import Path

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

import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
'''
_CLASS = '''\
class Encoder(nn.Module, PyTorchModelHubMixin):
    """Normalised views (B, C, S, S) -> features (B, F); `preprocess` makes views of images (B, C, H, W)."""

    def __init__(self, architecture: str, model_args: dict, preprocessing: dict) -> None:
        super().__init__()
        self.network = {build}
        self.preprocess = Preprocessing(**preprocessing)

    def forward(self, views: Tensor) -> Tensor:
        return self.network(views)
'''


def _write(exported: Exported, folder: Path) -> list[str]:
    code = exported.architecture.code
    build = "build(**model_args)" if code else "timm.create_model(architecture, **model_args)"
    parts = [_HEAD, inspect.getsource(Preprocessing), code, _CLASS.format(build=build)]
    (folder / FILE).write_text("\n\n".join(part for part in parts if part))
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
