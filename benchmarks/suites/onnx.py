"""An exported encoder: ONNX Runtime beside torch, on the CPU and with the same number of threads."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import rankgap as rg
from benchmarks.suites.timing import Row, Settings, in_turns

CASES: tuple[tuple[str, int, tuple[int, ...]], ...] = (  # network, side of a view in px, images in a batch
    ("resnet18", 224, (1, 16)),
    ("resnet_tiny", 32, (64,)),
)


def measure(settings: Settings) -> list[Row]:
    """Train each network for two steps on photographs, export it, and time both on the same views."""
    with tempfile.TemporaryDirectory() as home:
        return [row for case in CASES for row in _measure(*case, Path(home), settings.repeats)]


def _measure(network: str, size: int, batches: tuple[int, ...], home: Path, repeats: int) -> list[Row]:
    pictures = [Image.fromarray(picture).resize((size, size)) for picture in load_sample_images().images]
    run = rg.train(
        pictures * 4,
        model=network,
        size=size,
        epochs=1,
        batch_size=4,
        protocol=(),
        loggers=(),
        accelerator="cpu",
        out=home / network,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so short a run
        made = rg.export(run, to="onnx", out=home / f"{network}-onnx")
    threads = torch.get_num_threads()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(made.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    encoder = run.encoder.encoder
    rows = []
    for batch in batches:
        views = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        given, plain = views.contiguous(memory_format=torch.channels_last), views.numpy()

        def theirs(given: torch.Tensor = given) -> torch.Tensor:
            with torch.inference_mode():
                features: torch.Tensor = encoder(given)
            return features

        def ours(plain: np.ndarray = plain) -> np.ndarray:
            (features,) = session.run(None, {"views": plain})
            return np.asarray(features)

        assert np.abs(ours() - theirs().numpy()).max() < 1e-3
        seconds, ratio, spread = in_turns(ours, theirs, repeats)
        rows.append(
            Row(
                what=f"ONNX Runtime, {network}, {batch} of {size} px, {threads} thread{'s' * (threads > 1)}",
                against="torch, channels last",
                seconds=seconds,
                ratio=ratio,
                spread=spread,
                bar="none: for comparison",
                met=True,
            )
        )
    return rows
