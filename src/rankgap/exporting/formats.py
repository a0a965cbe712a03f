"""The formats that an encoder is exported to, one row each."""

from __future__ import annotations

import importlib
from typing import get_args

from rankgap.choices import FormatName
from rankgap.errors import UserError, missing, unknown
from rankgap.exporting.format import Format

FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def format_called(name: FormatName) -> Format:
    """The row of a format. A format's module is imported only here: ONNX needs libraries that others do not.

    Raises:
        UserError: there is no such format, or its libraries are not installed.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    word = name.replace("-", "_")
    try:
        row: Format = getattr(importlib.import_module(f"rankgap.exporting.to_{word}"), word.upper())
    except ModuleNotFoundError as error:
        if (said := missing(error.name, f"export to {name}")) is None:
            raise
        raise UserError(said) from error
    return row
