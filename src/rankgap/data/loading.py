"""From a data spec to image sets, in memory or decoded along the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankgap.data.decoding import Header
from rankgap.data.encoded import Arrays, Encoded, EncodedImages, header_of
from rankgap.data.image_set import ImageSet
from rankgap.data.sources import Source, Split, Statistics, open_source
from rankgap.errors import UserError

IN_MEMORY = 2 * 2**30
_HEADERS = 1_000  # looked at before the stored size is chosen
_STATISTICS = 10_000  # images that mean and deviation are taken from


def load_data(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    memory: int = IN_MEMORY,
) -> tuple[ImageSet, ImageSet | None]:
    """Training and test images that a spec names.

    Images are stored squashed to a square of side S (`stored_size`), the same for both splits. Mean and deviation
    are the published ones of cifar10 and cifar100, else those of up to 10,000 training images; the test set gets
    the training set's.

    Args:
        spec: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR.
        size: side of the views to be drawn, in pixels; decides S.
        channels: convert all images to this many channels (1 or 3); None demands that they agree.
        limit: train on the first `limit` images of a seeded shuffle; None for all, in the set's order.
        seed: of that shuffle.
        memory: bytes a split may take decoded; a larger one is decoded batch by batch.

    Returns:
        The training set, and the test set or None.

    Raises:
        UserError: no such data, no images, a broken image (named), or mixed channel counts (one of each named).
    """
    source = open_source(spec)
    rows = np.arange(len(source.train.images))
    if limit is not None:
        if limit < 1:
            raise UserError(f"--limit must be at least 1, got {limit}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(rows), generator=generator)[:limit].numpy()
    notes = list(source.notes)
    if isinstance(source.train.images, Arrays):
        train, test = _stored_arrays(source, rows, channels)
    else:
        images = layout(source.train.images, rows, size, channels)
        train, test = _stored(source, images, memory, notes)
    mean, std = source.statistics if source.statistics and train.channels == 3 else statistics(train.images)
    if min(std) < 1 / 255:
        notes.append(f"{spec}: a channel is constant; it is only centred")
        std = tuple(s if s >= 1 / 255 else 1.0 for s in std)
    for part in (train, test):
        if part is not None:
            part.mean, part.std, part.notes = mean, std, notes
    return train, test


def stored_size(headers: Sequence[Header], size: int | None) -> int:
    """The side at which images are stored.

    Images of one square side up to 96 pixels are stored as they are. Else the side is 8/7 of the view's (256 for
    224, which is the view taken for granted), and at most the longest side found.

    Args:
        headers: of some of the images.
        size: side of the views in pixels, or None.
    """
    sides = {side for h in headers for side in (h.height, h.width)}
    longest = max(sides)
    if len(sides) == 1 and longest <= 96:
        return longest
    return min(longest, round((size or 224) * 8 / 7))


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Up to `most` of the positions [0, count), evenly spread."""
    picked = min(count, most)
    return np.arange(picked) * count // max(picked, 1)


def layout(images: Encoded, rows: npt.NDArray[np.int64], size: int | None, channels: int | None) -> EncodedImages:
    """How images are to be stored, from the headers of up to 1,000 of them.

    Raises:
        UserError: a header that cannot be read, or mixed channel counts.
    """
    seen = rows[spread(len(rows), _HEADERS)]
    headers = [header_of(images, int(row)) for row in seen]
    found = EncodedImages(
        images,
        rows,
        size=stored_size(headers, size),
        channels=channels or headers[0].channels,
        convert=channels is not None,
        example=images.name(int(seen[0])),
    )
    for row, header in zip(seen, headers, strict=True):
        found.check(int(row), header.channels)
    return found


def _stored(
    source: Source, images: EncodedImages, memory: int, notes: list[str]
) -> tuple[ImageSet, ImageSet | None]:
    train = _stored_split(source.name, source.train, images, memory, notes)
    if source.test is None:
        return train, None
    rows = np.arange(len(source.test.images))
    tests = EncodedImages(
        source.test.images, rows, images.size, images.channels, convert=images.convert, example=images.example
    )
    return train, _stored_split(f"{source.name} (test)", source.test, tests, memory, notes)


def _stored_split(name: str, split: Split, images: EncodedImages, memory: int, notes: list[str]) -> ImageSet:
    labels = None if split.labels is None else split.labels[torch.from_numpy(images.rows)]
    if images.nbytes > memory:
        images.check_headers()
        notes.append(
            f"{name}: {len(images)} images of {images.channels} x {images.size} x {images.size} exceed "
            f"{memory / 2**30:.3g} GiB: each batch is decoded when it is needed"
        )
        return ImageSet(name, images, labels, (), (), classes=split.classes)
    pixels, sizes = images.read(range(len(images)))
    same = bool((sizes == images.size).all())
    return ImageSet(name, pixels, labels, (), (), sizes=None if same else sizes, classes=split.classes)


def _stored_arrays(
    source: Source, rows: npt.NDArray[np.int64], channels: int | None
) -> tuple[ImageSet, ImageSet | None]:
    sets = []
    for split, which in ((source.train, torch.from_numpy(rows)), (source.test, slice(None))):
        assert split is not None
        assert isinstance(split.images, Arrays)
        assert split.labels is not None
        pixels = convert_channels(split.images.images[which], channels)
        name = source.name if split is source.train else f"{source.name} (test)"
        sets.append(ImageSet(name, pixels, split.labels[which], (), (), classes=split.classes))
    return sets[0], sets[1]


def convert_channels(images: Tensor, channels: int | None) -> Tensor:
    """(N, C, H, W) uint8 to the asked number of channels: grey repeated, or the luma of ITU-R 601.

    Raises:
        UserError: there is no such conversion.
    """
    found = images.shape[1]
    if channels in (None, found):
        return images
    if (found, channels) == (1, 3):
        return images.expand(-1, 3, -1, -1).contiguous()
    if (found, channels) == (3, 1):
        weights = torch.tensor([0.299, 0.587, 0.114])
        return torch.einsum("nchw,c->nhw", images.float(), weights).round_().byte().unsqueeze(1)
    raise UserError(f"{found} channels cannot be converted to {channels}, only to 1 or 3")


def statistics(images: Tensor | EncodedImages) -> Statistics:
    """Per-channel mean and population deviation of values in [0, 1], from up to 10,000 images evenly spread.

    Sums are of integers, so that the order of summation does not matter.
    """
    rows = torch.from_numpy(spread(len(images), _STATISTICS))
    channels = images.shape[1] if isinstance(images, Tensor) else images.channels
    moments = torch.zeros(2, channels, dtype=torch.int64)
    pixels = 0
    for part in rows.split(256):
        values = images[part] if isinstance(images, Tensor) else images.read(part)[0]
        moments += channel_moments(values)
        pixels += values.numel() // channels
    return from_moments(moments, pixels)


def channel_moments(values: Tensor) -> Tensor:
    """Sums of the values and of their squares, (2, C) int64, of (B, C, H, W) uint8."""
    wide = values.to(torch.int32)
    return torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])


def from_moments(moments: Tensor, pixels: int) -> Statistics:
    """Mean and deviation of values in [0, 1] from `channel_moments` of that many pixels a channel."""
    mean, square = (moments.double() / pixels).unbind()
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
