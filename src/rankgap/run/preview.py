"""Images and their views before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.data import ImageSet, Inspection, inspect
from rankgap.evaluate.batches import batch_for, views_of
from rankgap.model.methods import design
from rankgap.run.choice import view_size
from rankgap.run.config import TrainConfig
from rankgap.run.presets import adapt_views
from rankgap.run.recipes import load_recipe, recipe_for
from rankgap.views import Views


class Preview(NamedTuple):
    """The data that training would read, and their views.

    Attributes:
        found: the inspection of all images.
        names: names of B of them.
        pictures: these B images, uint8 (B, C, H, H), each shown whole with its own aspect ratio.
        views: their V views (B, C, S, S) in [0, 1].
        notes: what the views leave out for such images, one sentence each.
    """

    found: Inspection
    names: list[str]
    pictures: Tensor
    views: Sequence[Tensor]
    notes: list[str]


def preview(config: TrainConfig, *, images: int = 24) -> Preview:
    """Inspect every image of a run's data, and draw views of a sample as its method would.

    Args:
        config: only data, method, size, channels and seed are used.
        images: number of images to draw views of; half of them where there are more than four views of each.

    Raises:
        UserError: an unknown method, missing data, or no image that can be read.
    """
    method = design(config.method)
    found = inspect(config.data, size=config.size, channels=config.channels)
    size, train = view_size(config.size, found.images), found.images
    published = load_recipe(recipe_for(method.body, size), method.body).sized(size)
    recipe, notes = adapt_views(published, config.data, train.channels)
    names, sample = found.sample(images if len(recipe.views) <= 4 else images // 2, config.seed)
    # With mean 0 and deviation 1 the views stay in [0, 1], ready to be shown.
    views = Views(recipe.views, size, [0.0] * train.channels, [1.0] * train.channels)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = views_of(views, batch_for(views, sample, range(len(sample)), generator), generator)
    return Preview(found, names, _whole(sample), list(drawn), notes)


def _whole(sample: ImageSet) -> Tensor:
    """Images with their own aspect ratio, in the middle of a white square."""
    squashed, sizes = sample.images, sample.sizes
    if not isinstance(squashed, Tensor):
        squashed, sizes = squashed.read(range(len(sample)))
    if sizes is None:
        return squashed
    side = squashed.shape[-1]
    found = torch.full_like(squashed, 255)
    for square, picture, size in zip(found, squashed, sizes, strict=True):
        height, width = (max(1, round(side * each / max(size.tolist()))) for each in size.tolist())
        top, left = (side - height) // 2, (side - width) // 2
        square[:, top : top + height, left : left + width] = F.interpolate(
            picture[None], (height, width), mode="bilinear", antialias=True
        )[0]
    return found
