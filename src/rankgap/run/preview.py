"""Images and their views before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankgap.data import Batch, Inspection, inspect
from rankgap.model.methods import design
from rankgap.run.config import TrainConfig
from rankgap.run.plan import published_recipe, view_size
from rankgap.views import Views


class Preview(NamedTuple):
    """The data that training would read, and their views.

    Attributes:
        found: the inspection of all images.
        names: names of B of them.
        batch: these B images.
        views: their V views (B, C, S, S) in [0, 1].
    """

    found: Inspection
    names: list[str]
    batch: Batch
    views: Sequence[Tensor]


def preview(config: TrainConfig, *, images: int = 24) -> Preview:
    """Inspect every image of a run's data, and draw views of a sample as its method would.

    Args:
        config: only data, method, size, channels and seed are used.
        images: number of images to draw views of.

    Raises:
        UserError: an unknown method, missing data, or no image that can be read.
    """
    method = design(config.method)
    found = inspect(config.data, size=config.size, channels=config.channels)
    size, train = view_size(config.size, found.images), found.images
    recipe, _ = published_recipe(config.data, method.body, size, train.channels)
    names, batch = found.sample(images, config.seed)
    # With mean 0 and deviation 1 the views stay in [0, 1], ready to be shown.
    views = Views(recipe.views, size, [0.0] * train.channels, [1.0] * train.channels)
    generator = torch.Generator().manual_seed(config.seed)
    return Preview(found, names, batch, list(views(batch.images, batch.sizes, generator)))
