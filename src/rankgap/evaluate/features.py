"""Frozen features of a whole set of images.

Shapes: N images, B in a batch, C channels, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rankgap.data import Batch, ImageSet
from rankgap.data.batch_loader import BatchLoader
from rankgap.views import eval_view

BATCH, CPU_BATCH = 256, 64  # images per forward pass, by default


class Features(NamedTuple):
    """Features of a set of images.

    Attributes:
        features: (N, F) float32; tokens (N, T, F) if the encoder gives those.
        labels: (N,) int64; None if the images have none.
    """

    features: Tensor
    labels: Tensor | None


class FeatureOptions(TypedDict, total=False):
    """How features are computed: keyword arguments of `feature_batches`, which documents them."""

    size: Required[int]
    batch_size: int | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    workers: int


class _Slices(Dataset[Batch]):
    """Consecutive batches of an image set, for a `BatchLoader`."""

    def __init__(self, images: ImageSet, batch_size: int, first: int) -> None:
        self.images = images
        self.rows = torch.split(torch.arange(first, len(images)), batch_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.images.batch(self.rows[index])


def default_batch(device: torch.device) -> int:
    """Images per forward pass; on a CPU, as many as its cache holds activations of."""
    return CPU_BATCH if device.type == "cpu" else BATCH


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and give each submodule its own mode back at the end."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU if it has no parameters."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def feature_batches(
    encoder: nn.Module,
    images: ImageSet,
    *,
    size: int,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    workers: int = 0,
    centre: float = 1.0,
    first: int = 0,
) -> Iterator[Features]:
    """Features of a set, batch by batch in the set's order, in evaluation mode and without gradient.

    Args:
        encoder: (B, C, size, size) -> (B, F), or tokens (B, T, F); its modules get their train or eval modes back
            at the end.
        images: the set; each image is seen once, through `eval_view`.
        size: side of the view in pixels.
        batch_size: images per forward pass; by default 64 on a CPU, whose cache holds their activations, else 256.
        device: where to compute; the encoder's own device by default. The encoder is moved there.
        dtype: the type to autocast to; None computes in the encoder's own type.
        mean: per-channel mean in [0, 1] to normalise with, which should be the training set's; the set's own by
            default.
        std: per-channel standard deviation of values in [0, 1] to normalise with, as `mean`.
        workers: processes that decode files ahead.
        centre: as in `eval_view`; photographs are cut already.
        first: the image to begin with.

    Yields:
        Features (B, F) float32 on the device; labels (B,) int64 on the device, or None.
    """
    device = device_of(encoder) if device is None else torch.device(device)
    encoder.to(device)
    loader = BatchLoader(
        _Slices(images, batch_size or default_batch(device), first),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    with evaluating(encoder):
        for batch in loader:
            # The modes are entered for each batch, because around a `yield` they would leak into the caller. Eager
            # mode keeps an encoder that was compiled for training from being compiled again for a pass or two.
            with torch.inference_mode(), _autocast(device, dtype), torch.compiler.set_stance("force_eager"):
                view = eval_view(
                    batch.images.to(device, non_blocking=True),
                    None if batch.sizes is None else batch.sizes.to(device, non_blocking=True),
                    size,
                    images.mean if mean is None else mean,
                    images.std if std is None else std,
                    centre,
                )
                features = encoder(view.contiguous(memory_format=torch.channels_last)).float()
            yield Features(features, None if batch.labels is None else batch.labels.to(device, non_blocking=True))


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Unpack[FeatureOptions],
) -> Features:
    """Features of a whole set in one tensor; the arguments are those of `feature_batches`.

    Returns:
        Features (N, F) float32 and labels (N,) int64 or None, in the set's order, on the device. They are ordinary
        tensors, which autograd may use as constants.
    """
    whole: Tensor | None = None
    labels: list[Tensor] = []
    row = 0
    for part, part_labels in feature_batches(encoder, images, mean=mean, std=std, **options):
        if whole is None:  # filled in place, so that the set is never held twice
            whole = part.new_empty(len(images), *part.shape[1:])
        whole[row : row + len(part)] = part
        row += len(part)
        if part_labels is not None:
            labels.append(part_labels)
    assert whole is not None, f"{images.name}: no images"
    return Features(whole, torch.cat(labels) if labels else None)
