"""Random views of a batch of an image set, whether it lies in memory or its crops are decoded from photographs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rankgap.data import Batch, Crops, ImageSet
from rankgap.data.crops import Shape
from rankgap.views import Views


def batch_for(
    views: Views, images: ImageSet, indices: Sequence[int] | Tensor, generator: torch.Generator
) -> Batch | Crops:
    """What `views_of` needs of some of the images. The crops of photographs are drawn here.

    Args:
        views: the random views, on the CPU.
        images: the set.
        indices: B positions in the set.
        generator: draws the views of photographs, on the CPU; unused for other images.

    Raises:
        UserError: an image is broken; the message names it.
    """
    shapes = [Shape(size, config.interpolation) for size, config in zip(views.sizes, views.configs, strict=True)]
    return images.for_views(indices, shapes, partial(views.draw, generator=generator))


def views_of(views: Views, batch: Batch | Crops, generator: torch.Generator) -> Tensor | list[Tensor]:
    """The random views of a batch, as `Views.forward` returns them.

    Args:
        views: the random views, on the batch's device.
        batch: what `batch_for` gave.
        generator: draws the views of images other than photographs, on the batch's device.
    """
    if isinstance(batch, Crops):
        return views.finish(batch.crops, batch.parameters)
    return views(batch.images, batch.sizes, generator)  # type: ignore[no-any-return]
