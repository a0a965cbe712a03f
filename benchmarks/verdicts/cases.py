"""The runs whose verdicts are tested: every row of the zoo, and twelve deliberate faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rankgap.data import ImageSet
from rankgap.model.methods import METHODS, Method
from rankgap.run.config import TrainConfig, file_name

NO_AUGMENTATION: Mapping[str, Any] = {
    "scale": [1, 1],
    "ratio": [1, 1],
    "flip": 0,
    "jitter_p": 0,
    "grey_p": 0,
    "blur_p": 0,
    "solarize_p": 0,
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The images and the length of the runs in one table.

    Args:
        name: its name in tables.
        data: the images, as in `rankgap train --data`.
        limit: training images, or None for all.
        epochs: epochs of a run.
        batch_size: images per step.
    """

    name: str
    data: str
    limit: int | None
    epochs: int
    batch_size: int

    def config(self, out: Path, *, seed: int, **changes: Any) -> TrainConfig:
        """The configuration of a run on these images."""
        options: dict[str, Any] = {
            "data": self.data,
            "limit": self.limit,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "backbone": "resnet_tiny",
            "loggers": (),
            "protocol": (),
            "seed": seed,
            "out": str(out),
        }
        return TrainConfig(**options | changes)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run.

    Args:
        title: its name in the table.
        fault: whether the run has a deliberate fault.
        changes: configuration fields that differ from the bench's.
        images: chooses training images from the bench's, as indices (N,); None for all of them.
    """

    title: str
    fault: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    images: Callable[[ImageSet, int], torch.Tensor] | None = None

    def config(self, bench: Bench, out: Path, *, seed: int) -> TrainConfig:
        """The configuration of the case's run, whose folder lies below `out`."""
        folder = out / bench.name / file_name(f"{self.title}-seed{seed}")
        changes = dict(self.changes)
        if self.images is not None:
            changes |= {"data": f"folder:{folder}-images", "batch_size": bench.batch_size // 2}
        return bench.config(folder, seed=seed, **changes)

    def prepare(self, config: TrainConfig, images: ImageSet) -> None:
        """Write the run's training images, if they are not the bench's."""
        if self.images is None:
            return
        folder = Path(config.data.removeprefix("folder:"))
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.images(images, config.limit or len(images))
        for number, image in enumerate(images.batch(rows).images):
            squeezed = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(squeezed.numpy()).save(folder / f"{number:05d}.png")


def _same_image(images: ImageSet, count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def _one_class(images: ImageSet, count: int) -> torch.Tensor:
    assert images.labels is not None
    return torch.nonzero(images.labels == 3).flatten()[:count]


def _settings(**changes: Any) -> dict[str, Any]:
    return {"settings": {key.replace("__", "."): value for key, value in changes.items()}}


def _views(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {"settings": {f"views.{i}.{key}": value for i in (0, 1) for key, value in changes.items()}}


# Rows that lack one part that no flag removes.
MADE: Mapping[str, Method] = {
    "simsiam without stop-gradient": replace(METHODS["simsiam"], stop_gradient=False),
    "byol with its own output as target": replace(METHODS["byol"], ema=False),
}

FAULTS = (
    Case(title="simsiam, no stop-gradient", changes={"method": "simsiam without stop-gradient"}),
    Case(title="simsiam, no predictor", changes={"method": "simsiam", "online": "identity"}),
    Case(title="simsiam, low-pass filter on the target", changes={"method": "simsiam", "target": "power:0.5"}),
    Case(title="simsiam, learning rate x 30", changes={"method": "simsiam", "lr": 30 * 0.06}),
    Case(title="byol, teacher never moves", changes={"method": "byol"} | _settings(teacher__momentum=1.0)),
    Case(title="byol, teacher equal to the student", changes={"method": "byol with its own output as target"}),
    Case(
        title="dino, temperature x 15",
        changes={"method": "dino"}
        | _settings(target__centred_assignment__temperature=1.0, target__centred_assignment__warmup_epochs=0),
    ),
    Case(
        title="dino, temperature / 70",
        changes={"method": "dino"}
        | _settings(target__centred_assignment__temperature=1e-3, target__centred_assignment__warmup_epochs=0),
    ),
    Case(title="swav, eps x 100", changes={"method": "swav"} | _settings(target__sinkhorn__eps=5.0)),
    Case(title="simsiam, one image repeated", changes={"method": "simsiam"}, images=_same_image),
    Case(title="simsiam, no augmentation", changes={"method": "simsiam"} | _views(NO_AUGMENTATION)),
    Case(title="simsiam, images of one class", changes={"method": "simsiam"}, images=_one_class),
)
CASES = (
    *(Case(title=name, fault=False, changes={"method": name}) for name in METHODS),
    *FAULTS,
)
