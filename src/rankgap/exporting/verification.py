"""Comparing an exported graph with the encoder in PyTorch, on real images.

Shapes: N images, C channels, (H, W) size of an image, F feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankgap.data import load_data
from rankgap.data.sources import data_root, open_source
from rankgap.errors import UserError
from rankgap.exporting.source import Exported

IMAGES = 64
LIMIT = 1e-4  # of a difference, in units of the largest feature where that is above 1
_PART = 63  # images in the first batch; the second is of one image
_CROP = 96  # px
_DOWNLOADS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # folders, by the name of the set


def check_graph(exported: Exported, run: Callable[[Tensor], Tensor], what: str) -> str:
    """Compare a graph with PyTorch on 64 real images, in batches of 63 and of one.

    Args:
        exported: the encoder.
        run: the graph: images or views, as `exported` has them -> features (B, F).
        what: the graph in words, such as "ONNX Runtime".

    Returns:
        A sentence with the largest difference.

    Raises:
        UserError: they differ by more than 1e-4.
    """
    images, which = real_images(exported)
    preprocessing, worst, scale = exported.preprocessing(), 0.0, 1.0
    with torch.inference_mode():
        for part in images.split(_PART):
            views = preprocessing(part)
            expected = exported.network(views)
            found = run(part if exported.inside else views)
            worst = max(worst, float((found - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    said = f"{what} and PyTorch differ by {worst:.1e} at most (features up to {scale:.2g}) on {which}"
    if not worst <= LIMIT * scale:  # a NaN too
        raise UserError(f"{said}: more than {LIMIT:g}, so nothing is exported; use --to safetensors")
    return said


def real_images(exported: Exported) -> tuple[Tensor, str]:
    """Images of the run, or of photographs if those cannot be read, and a phrase that says which.

    Returns:
        (N, C, H, W) in the values that the preprocessing takes; N is at most 64.
    """
    kept = exported.saved.model
    images, which = _of_the_run(exported), "the run's images"
    if images is None:
        images, which = _photographs(kept.channels), "scikit-learn's photographs, as the run's are not here"
    if kept.levels is not None:
        low, high = (torch.tensor(each)[:, None, None] for each in (kept.levels.low, kept.levels.high))
        values = low + images / 255 * (high - low)
        images = values.round().int() if kept.levels.depth == "integer" else values
    return images, f"{len(images)} of {which}"


def _of_the_run(exported: Exported) -> Tensor | None:
    """Images (N, C, H, W) uint8 that the run was trained on; None if they cannot be read without a download."""
    kept, run = exported.saved.model, exported.saved.run
    _, colon, place = run.data.partition(":")
    here = Path(place) if colon else data_root() / _DOWNLOADS.get(run.data, "")
    if run.data != "digits" and not here.exists():
        return None
    try:
        found, _ = load_data(
            replace(open_source(run.data), test=None),
            size=run.size,
            channels=kept.channels,
            limit=IMAGES,
            on_bad_image="skip",
            statistics=kept.statistics,
        )
    except UserError:
        return None
    return found.batch(range(len(found))).images


def _photographs(channels: int) -> Tensor:
    """Crops (64, C, 96, 96) of two photographs; where there are other than three channels, theirs in turn."""
    from sklearn.datasets import load_sample_images

    def crops(photograph: np.ndarray) -> Iterator[Tensor]:
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
        for k in range(IMAGES // 2):
            row, column = divmod(k, 8)
            top, left = row * (pixels.shape[1] - _CROP) // 3, column * (pixels.shape[2] - _CROP) // 7
            yield pixels[:, top : top + _CROP, left : left + _CROP]

    images = torch.stack([crop for photograph in load_sample_images().images for crop in crops(photograph)])
    return images[:, [c % 3 for c in range(channels)]]
