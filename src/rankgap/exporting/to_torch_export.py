"""For torch.export: a program that loads with torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from rankgap.errors import UserError
from rankgap.exporting.format import PREPROCESSING, Format, in_folder, some_images
from rankgap.exporting.source import Exported
from rankgap.exporting.verification import check_graph

FILE = "model.pt2"
# What torch.export raises at a network that it cannot trace.
UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, AssertionError)


def dynamic_shapes(exported: Exported) -> tuple[dict[int, Any]]:
    """The axes of the graph's input that may have any length: the batch, and those of images inside it."""
    return ({0: Dim("batch"), **({2: Dim("height"), 3: Dim("width")} if exported.inside else {})},)


def traced(exported: Exported) -> ExportedProgram:
    """The encoder as a graph.

    Raises:
        UserError: torch.export cannot trace the network.
    """
    try:
        with torch.no_grad():
            return torch.export.export(
                exported.graph(), (exported.example(),), dynamic_shapes=dynamic_shapes(exported)
            )
    except UNTRACEABLE as error:
        raise untraceable("torch.export", exported, error) from error


def untraceable(what: str, exported: Exported, error: Exception) -> UserError:
    """The error for a network that a tracer does not take."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{what} cannot trace {exported.architecture.name}: {reason}; use --to safetensors")


def _write(exported: Exported, folder: Path) -> list[str]:
    program = traced(exported)
    for node in program.graph.nodes:  # they name files of this machine
        node.meta.pop("stack_trace", None)
    torch.export.save(program, folder / FILE)
    loaded = torch.export.load(folder / FILE).module()
    return [check_graph(exported, loaded, "the exported program")]


def _loads(exported: Exported) -> list[str]:
    lines = [f'encoder = torch.export.load(f"{{folder}}/{FILE}").module()', some_images(exported)]
    if exported.inside:
        return ["import torch", *in_folder(exported), *lines, "features = encoder(images)"]
    made = "features = encoder(Preprocessing.of(folder)(images))"
    return ["import sys, torch", *in_folder(exported, PREPROCESSING), *lines, made]


TORCH_EXPORT = Format(
    about="a program of torch.export", library="pytorch", loads=_loads, write=_write, graph=True, own=True
)
