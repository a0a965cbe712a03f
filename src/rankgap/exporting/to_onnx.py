"""For ONNX: one file that any runtime executes, compared with PyTorch before it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from rankgap.exporting.format import Format, in_folder, random_images
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
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (features,) = session.run(None, {exported.input_name: images.numpy()})
        return torch.from_numpy(features)

    return [f"opset {OPSET}", check_graph(exported, run, "ONNX Runtime")]


def _loads(exported: Exported) -> list[str]:
    made = "images" if exported.inside else "Preprocessing.of(folder)(images)"
    return [
        "import sys, onnxruntime, torch",
        *in_folder(exported),
        *([] if exported.inside else ["from preprocessing import Preprocessing"]),
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{FILE}")',
        random_images(exported),
        f'(features,) = session.run(None, {{"{exported.input_name}": {made}.numpy()}})',
    ]


ONNX = Format(about=f"ONNX, opset {OPSET}", library="onnx", loads=_loads, write=_write, graph=True, own=True)
