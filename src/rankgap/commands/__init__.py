"""The commands, one function each. Their flags come from the types and docstrings of their parameters."""

from __future__ import annotations

from collections.abc import Callable

from rankgap.commands.designs import design, methods
from rankgap.commands.encoders import embed, export, map_features
from rankgap.commands.images import inspect_data
from rankgap.commands.runs import compare, demo, evaluate, report, score, train, watch

COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "score": score,
    "report": report,
    "export": export,
    "embed": embed,
    "map": map_features,
    "watch": watch,
    "methods": methods,
    "design": design,
    "inspect": inspect_data,
}
POSITIONAL = {
    "evaluate": ("run",),
    "score": ("run",),
    "export": ("run",),
    "watch": ("run",),
    "compare": ("runs",),
    "report": ("runs",),
    "inspect": ("data",),
    "embed": ("encoder", "data"),
    "map": ("features",),
}
