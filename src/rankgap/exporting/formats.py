"""The formats that an encoder is exported to, one row each."""

from __future__ import annotations

import importlib
from typing import Literal, get_args

from rankgap.exporting.format import Format

FormatName = Literal["timm", "safetensors", "onnx", "torch-export", "hf"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def format_called(name: FormatName) -> Format:
    """The row of a format. A format's module is imported only here: ONNX needs libraries that others do not."""
    word = name.replace("-", "_")
    row: Format = getattr(importlib.import_module(f"rankgap.exporting.to_{word}"), word.upper())
    return row
