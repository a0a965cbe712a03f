"""For ONNX: one file that any runtime executes, compared with PyTorch before it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from rankgap.exporting.format import PREPROCESSING, Format, in_folder, some_images
from rankgap.exporting.source import Exported
from rankgap.exporting.to_torch_export import UNTRACEABLE, traced, untraceable
from rankgap.exporting.verification import check_graph

FILE = "model.onnx"
OPSET = 18
LARGEST = 2**30  # bytes of weights in one file; protobuf takes 2 GiB


def _write(exported: Exported, folder: Path) -> list[str]:
    program = traced(exported)
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[exported.input_name],
            output_names=["features"],
            verbose=False,
        )
    except UNTRACEABLE as error:
        raise untraceable("torch.onnx", exported, error) from error
    assert made is not None
    for node in made.model.graph:  # their notes name files of this machine
        node.metadata_props.clear()
    made.model.metadata_props["preprocessing"] = json.dumps(exported.described())
    size = sum(p.numel() * p.element_size() for p in exported.network.parameters())
    made.save(folder / FILE, external_data=size > LARGEST)
    onnx.checker.check_model(folder / FILE)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (features,) = session.run(None, {exported.input_name: images.numpy()})
        return torch.from_numpy(features)

    return [check_graph(exported, run, f"ONNX Runtime (opset {OPSET})")]


def _loads(exported: Exported) -> list[str]:
    session = f'session = onnxruntime.InferenceSession(f"{{folder}}/{FILE}")'
    result = '(features,) = session.run(None, {{"{0}": {1}}})'
    if exported.inside:
        lines = [session, some_images(exported, "np"), result.format("images", "images")]
        return ["import numpy as np, onnxruntime", *in_folder(exported), *lines]
    lines = [session, some_images(exported), "views = Preprocessing.of(folder)(images)"]
    lines.append(result.format("views", "views.numpy()"))
    return ["import sys, onnxruntime, torch", *in_folder(exported, PREPROCESSING), *lines]


ONNX = Format(
    about=f"ONNX, opset {OPSET}",
    library="onnx",
    loads=_loads,
    write=_write,
    graph=True,
    own=True,
    tags=("onnx",),
)
