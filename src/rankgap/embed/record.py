"""What a file of features says of itself: the encoder, the images, and how they were seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from rankgap.data.fingerprint import Fingerprint
from rankgap.data.levels import Levels
from rankgap.errors import UserError

FORMAT = 1
FLOAT = 4  # bytes of a number


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How the features of a file were computed.

    Attributes:
        format: version of the format.
        encoder: the run folder with checkpoint and branch, or timm:NAME.
        weights: digest of the encoder's weights.
        data: the data set, with absolute paths.
        images: fingerprints of its splits, the unreadable images included.
        rows: number of images with features in each split, in the file's order.
        size: side of a view in pixels.
        centre: side of the central square that is seen, as a share of the shorter side.
        mean: mean of each channel in [0, 1], for normalisation.
        std: standard deviation of each channel in [0, 1].
        levels: how the values of deep images became 0 ... 255; None for images of 8 bits.
        shape: of the features of one image: (F,), or (T, F) for tokens.
        batch_size: images per forward pass.
        precision: of the forward pass.
        rankgap: the version that computed them.
    """

    format: int = FORMAT
    encoder: str
    weights: str
    data: str
    images: Mapping[str, Fingerprint]
    rows: Mapping[str, int]
    size: int
    centre: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: Levels | None
    shape: tuple[int, ...]
    batch_size: int
    precision: str
    rankgap: str

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(
                f"expected features of format {FORMAT}, got {self.format}: update rankgap, or embed again"
            )

    @property
    def count(self) -> int:
        """N, the number of images with features."""
        return sum(self.rows.values())

    @property
    def row_bytes(self) -> int:
        """The size of one image's features in bytes."""
        return FLOAT * math.prod(self.shape)

    def difference(self, now: Record) -> str | None:
        """Why features of another record do not belong into the same file; None if they do."""
        if self.weights != now.weights:
            return f"with another encoder ({self.encoder})"
        if self.images.keys() != now.images.keys():
            return f"on other splits ({', '.join(self.images)})"
        for split, fingerprint in self.images.items():
            if told := fingerprint.difference(now.images[split]):
                return f"on other images ({self.data}: {told})"
        if self.rows != now.rows:
            return f"on {self.count:,} images that could be read, which are {now.count:,} now"
        names = ("size", "centre", "mean", "std", "levels", "shape", "batch_size", "precision")
        changed = [name for name in names if getattr(self, name) != getattr(now, name)]
        return f"with another {changed[0].replace('_', ' ')}" if changed else None


def digest(network: nn.Module) -> str:
    """A digest of a network's weights, buffers included."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
