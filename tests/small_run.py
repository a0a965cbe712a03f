"""A run that takes seconds: four steps on digits from Python, or a few images by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankgap.run.config import TrainConfig

# Flags of `rankgap train` for a few images; the number of epochs is left to the test.
FLAGS = ["--backbone", "resnet_tiny", "--batch-size", "8", "--loggers", "none", "--rank-every", "1"]
FLAGS += ["--accelerator", "cpu", "--precision", "32-true"]


def four_steps(out: Path, **more: Any) -> TrainConfig:
    """The configuration of a run of four steps on digits, in two epochs."""
    return TrainConfig(
        data="digits",
        limit=128,
        batch_size=64,
        epochs=2,
        backbone="resnet_tiny",
        precision="32-true",
        rank_every=1,
        loggers=(),
        out=str(out),
        **more,
    )
