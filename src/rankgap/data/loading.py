"""From a data spec to image sets, in memory or decoded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankgap.data.decoding import Header, ImageError, convert
from rankgap.data.encoded import Arrays, Encoded, EncodedImages, header_of
from rankgap.data.image_set import ImageSet
from rankgap.data.sources import open_source
from rankgap.data.splits import Split, Statistics
from rankgap.errors import UserError

Index = npt.NDArray[np.int64]

IN_MEMORY = 2 * 2**30  # bytes that a split may take decoded
HEADERS = 1_000  # to read before the stored size is chosen
_STATISTICS = 10_000  # images from which mean and standard deviation are taken
_SMALL = 96  # side in pixels up to which images are stored as they are, and decoded without threads
_VIEW = 224  # side of a view in pixels, if none is given
_PART = 256  # images to read at once for the statistics


def load_data(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    memory: int = IN_MEMORY,
) -> tuple[ImageSet, ImageSet | None]:
    """The training and test images that a spec names.

    Images are stored squashed to a square of side S (`stored_size`), which is the same for both splits. Mean and
    standard deviation are the published ones for cifar10 and cifar100, and otherwise those of up to 10,000
    training images. The test set gets those of the training set.

    Args:
        spec: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR.
        size: side of the views to be drawn, in pixels; it decides S.
        channels: the number of channels (1 or 3) to convert all images to; None requires that they agree.
        limit: train on the first `limit` images of a seeded shuffle; None for all images, in the set's order.
        seed: of that shuffle.
        memory: bytes that a split may take decoded; a larger split is decoded batch by batch.

    Returns:
        The training set, and the test set or None.

    Raises:
        UserError: there is no such data set, it has no images, an image is broken (it is named), or the channel
            counts are mixed (one image of each is named).
    """
    source = open_source(spec)
    rows = _chosen(len(source.train.images), limit, seed)
    notes = list(source.notes)
    plan = None
    if not isinstance(source.train.images, Arrays):
        plan = layout(source.train.images, rows, size, channels)
    images, sizes = _store(source.train.images, rows, plan, channels, memory)
    found = images.shape[1] if isinstance(images, Tensor) else images.channels
    mean, std = source.statistics if source.statistics and found == 3 else statistics(images)
    if min(std) < 1 / 255:
        notes.append(f"{spec}: a channel is constant, so it is centred but not scaled")
        std = tuple(s if s >= 1 / 255 else 1.0 for s in std)
    splits = [_image_set(spec, source.train, rows, images, sizes, (mean, std))]
    if source.test is not None:
        rows = np.arange(len(source.test.images))
        images, sizes = _store(source.test.images, rows, plan, channels, memory)
        splits.append(_image_set(f"{spec} (test)", source.test, rows, images, sizes, (mean, std)))
    for split in splits:
        if not split.in_memory:
            notes.append(
                f"{split.name}: {len(split)} images of {split.channels} x {split.size} x {split.size} exceed "
                f"{memory / 2**30:.3g} GiB, so each batch is decoded when it is needed"
            )
        split.notes = notes
    return splits[0], splits[1] if len(splits) > 1 else None


def _chosen(count: int, limit: int | None, seed: int) -> Index:
    if limit is None:
        return np.arange(count)
    if limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}")
    order: Index = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[:limit]


def stored_size(headers: Sequence[Header], size: int | None) -> int:
    """The side at which images are stored.

    Square images that all have the same side of up to 96 pixels are stored as they are. Otherwise the side is 8/7
    of the view's (256 for a view of 224, the default), and at most the longest side found.

    Args:
        headers: the headers of some of the images.
        size: side of the views in pixels; 224 if None.
    """
    sides = {side for h in headers for side in (h.height, h.width)}
    longest = max(sides)
    if len(sides) == 1 and longest <= _SMALL:
        return longest
    return min(longest, round((size or _VIEW) * 8 / 7))


def pays_in_threads(headers: Sequence[Header]) -> bool:
    """Whether images with these headers are large enough to decode in threads (see `EncodedImages`)."""
    return max(max(header.height, header.width) for header in headers) > _SMALL


def spread(count: int, most: int) -> Index:
    """Up to `most` of the positions [0, count), evenly spread."""
    picked = min(count, most)
    return np.arange(picked) * count // max(picked, 1)


def layout(images: Encoded, rows: Index, size: int | None, channels: int | None) -> EncodedImages:
    """Decide how images are stored, from the headers of up to 1,000 of them.

    Raises:
        UserError: a header cannot be read, or the channel counts are mixed.
    """
    seen = rows[spread(len(rows), HEADERS)]
    headers = [header_of(images, int(row)) for row in seen]
    found = EncodedImages(
        source=images,
        rows=rows,
        size=stored_size(headers, size),
        channels=channels or headers[0].channels,
        convert=channels is not None,
        example=images.name(int(seen[0])),
        threads=pays_in_threads(headers),
    )
    for row, header in zip(seen, headers, strict=True):
        found.check(int(row), header.channels)
    return found


def _store(
    source: Encoded, rows: Index, plan: EncodedImages | None, channels: int | None, memory: int
) -> tuple[Tensor | EncodedImages, Tensor | None]:
    """The images of some rows, decoded if they fit into memory, and their original sizes if these differ."""
    if isinstance(source, Arrays):
        return _converted(source.images[torch.from_numpy(rows)], channels), None
    assert plan is not None
    images = replace(plan, source=source, rows=rows)
    if images.nbytes > memory:
        images.check_headers()
        return images, None
    pixels, sizes = images.read(range(len(images)))
    return pixels, None if bool((sizes == images.size).all()) else sizes


def _converted(images: Tensor, channels: int | None) -> Tensor:
    if channels is None or channels == images.shape[1]:
        return images
    try:
        pixels = convert(images.permute(0, 2, 3, 1).numpy(), channels)
    except ImageError as error:
        raise UserError(str(error)) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _image_set(
    name: str,
    split: Split,
    rows: Index,
    images: Tensor | EncodedImages,
    sizes: Tensor | None,
    moments: Statistics,
) -> ImageSet:
    labels = None if split.labels is None else split.labels[torch.from_numpy(rows)]
    return ImageSet(name, images, labels, *moments, sizes=sizes, classes=split.classes)


def statistics(images: Tensor | EncodedImages) -> Statistics:
    """Per-channel mean and population standard deviation of values in [0, 1], from up to 10,000 images.

    The images are evenly spread over the set. Sums are of integers, so the order of summation does not matter.
    """
    rows = torch.from_numpy(spread(len(images), _STATISTICS))
    channels = images.shape[1] if isinstance(images, Tensor) else images.channels
    moments = torch.zeros(2, channels, dtype=torch.int64)
    pixels = 0
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        values = images[part] if isinstance(images, Tensor) else images.read(part)[0]
        moments += channel_moments(values)
        pixels += values.numel() // channels
    return from_moments(moments, pixels)


def channel_moments(values: Tensor) -> Tensor:
    """Sums of the values and of their squares, (2, C) int64, of (B, C, H, W) uint8.

    The 256 values are counted, because wider integers would take sixteen times the images' memory.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in values.unbind(1)])
    levels = torch.arange(256)
    return torch.stack([counts @ levels, counts @ levels.square()])


def from_moments(moments: Tensor, pixels: int) -> Statistics:
    """Mean and standard deviation of values in [0, 1], from `channel_moments` and the pixels per channel."""
    mean, square = (moments.double() / pixels).unbind()
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
