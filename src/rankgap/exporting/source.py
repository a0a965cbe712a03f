"""What is exported: the encoder of a run at a checkpoint, and what config.json says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankgap.choices import Side
from rankgap.exporting.architecture import Architecture
from rankgap.exporting.preprocessing import Preprocessing
from rankgap.run.encoder import TrainedEncoder
from rankgap.run.folder import RunFolder
from rankgap.run.saved import SavedRun

_VALUES = {"integer": "int32", "floating-point": "float32"}  # by the depth of deep images


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exported:
    """An encoder that is being exported.

    Args:
        folder: the run.
        saved: the run's configuration.
        checkpoint: the name of the checkpoint.
        step: optimiser steps done by then.
        branch: the branch whose encoder it is.
        encoder: the encoder.
        architecture: what builds its network again.
        inside: whether a graph takes images, and holds the preprocessing, instead of views.
        licence: the licence of the weights, an identifier of the Hugging Face Hub.
        hub: the name under which it will be on the Hugging Face Hub; None if it will not be there.
    """

    folder: RunFolder
    saved: SavedRun
    checkpoint: str
    step: int
    branch: Side
    encoder: TrainedEncoder
    architecture: Architecture
    inside: bool = False
    licence: str = "unknown"
    hub: str | None = None

    @property
    def at_end(self) -> bool:
        """Whether the checkpoint is the one that the run's scores and verdict are of."""
        return self.checkpoint == "last" or self.step == self.saved.work.steps

    @property
    def network(self) -> nn.Module:
        """Normalised views (B, C, S, S) -> features (B, F)."""
        return self.encoder.encoder.network

    @property
    def input_name(self) -> str:
        """The name of a graph's input."""
        return "images" if self.inside else "views"

    def preprocessing(self) -> Preprocessing:
        """The preprocessing, as every exported folder describes it."""
        return Preprocessing(**self.described())

    def graph(self) -> nn.Module:
        """What a graph holds: the network, with the preprocessing before it if that goes inside."""
        return nn.Sequential(self.preprocessing(), self.network).eval() if self.inside else self.network

    def example(self) -> Tensor:
        """An input of the graph: two images, whose sides differ, or two views."""
        kept = self.saved.model
        if not self.inside:
            return torch.zeros(2, kept.channels, kept.size, kept.size)
        values = getattr(torch, self.preprocessing().values)
        return torch.zeros(2, kept.channels, kept.size + 8, kept.size + 16, dtype=values)

    def described(self) -> dict[str, Any]:
        """The preprocessing as config.json has it: the arguments of `Preprocessing`."""
        kept = self.saved.model
        levels = kept.levels
        return {
            "size": kept.size,
            "crop_share": kept.centre,
            "interpolation": "bicubic",
            "mean": list(kept.mean),
            "std": list(kept.std),
            "values": "uint8" if levels is None else _VALUES[levels.depth],
            "levels": None if levels is None else {"low": list(levels.low), "high": list(levels.high)},
        }

    def config(self) -> dict[str, Any]:
        """The parts of config.json that describe the encoder, in the layout in which timm writes and reads it."""
        kept, built = self.saved.model, self.architecture
        pool = getattr(self.network, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        pretrained = {
            "input_size": [kept.channels, kept.size, kept.size],
            "interpolation": "bicubic",
            "crop_mode": "center",
            "crop_pct": _crop_pct(kept.size, kept.centre),
            "mean": list(kept.mean),
            "std": list(kept.std),
            "num_classes": 0,
            **built.facts,
        }
        if kept.channels != 3:  # timm 1.0.16 would adapt the first layer to them, to random weights
            pretrained.pop("first_conv", None)
        return {
            "architecture": built.name,
            "num_classes": 0,
            "num_features": self.encoder.encoder.features,
            **({"global_pool": pool} if isinstance(pool, str) and pool else {}),
            "model_args": dict(built.arguments),
            "pretrained_cfg": pretrained,
            "preprocessing": self.described(),
        }


def _crop_pct(size: int, centre: float) -> float:
    """The share of which timm makes our resized side: it takes floor(S / share), we take round(S / share)."""
    side = round(size / centre)
    share = size / side
    return share if math.floor(size / share) == side else math.nextafter(share, 0)
