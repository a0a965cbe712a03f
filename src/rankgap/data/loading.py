"""From a data spec to image sets, in memory or decoded batch by batch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankgap.choices import OnBadImage
from rankgap.data.channels import convert
from rankgap.data.containers import Arrays, Encoded
from rankgap.data.cutting import PHOTO_CENTRE
from rankgap.data.decoding import Header
from rankgap.data.deep import levels_of
from rankgap.data.encoded import Broken, BrokenImageError, EncodedImages, header_of
from rankgap.data.fingerprint import Fingerprint
from rankgap.data.image_set import ImageSet
from rankgap.data.levels import spread
from rankgap.data.names import shown
from rankgap.data.sources import open_source
from rankgap.data.splits import Moments, Source, Split, Statistics
from rankgap.data.waiting import Waiting
from rankgap.errors import UserError

Index = npt.NDArray[np.int64]

IN_MEMORY = 2 * 2**30  # bytes that a split may take decoded
HEADERS = 1_000  # to read before the stored size is chosen
_STATISTICS = 10_000  # images from which mean and standard deviation are taken
_SMALL = 96  # side in pixels up to which images are stored as they are, and decoded without threads
_VIEW = 224  # side of a view in pixels, if none is given
_PART = 256  # images to read at once for the statistics


def load_data(
    spec: str | Source,
    *,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    memory: int = IN_MEMORY,
    on_bad_image: OnBadImage = "error",
    statistics: Statistics | None = None,
    centre: float | None = None,
) -> tuple[ImageSet, ImageSet | None]:
    """The training and test images that a spec names.

    Images are stored squashed to a square of side S if that shrinks none of them (`layout_of`). Larger ones,
    photographs, stay encoded: their views are cut out of the originals, batch by batch.

    Args:
        spec: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR; or a data set that is already open.
        size: side of the views to be drawn, in pixels; it decides S.
        channels: the number of channels (1 or 3) to convert all images to; None requires that they agree.
        limit: train on the first `limit` images of a seeded shuffle; None for all images, in the set's order.
        seed: of that shuffle.
        memory: bytes that a split may take decoded; a larger split is decoded batch by batch, as photographs are.
        on_bad_image: skip leaves out images that cannot be read (`ImageSet.skipped` lists them). A set that is
            decoded batch by batch is then decoded once before, to find them.
        statistics: mean, standard deviation and levels of each channel, for both sets. By default, mean and
            deviation are the published ones of cifar10 and cifar100, and otherwise those of up to 10,000 training
            images; the levels of deep images are decided from up to 200 of them (`deep.levels_of`).
        centre: as in `layout_of`, of an encoder that is there already.

    Returns:
        The training set, and the test set or None.

    Raises:
        UserError: there is no such data set, it has no images, an image is broken and not skipped (it is named),
            or the channel counts or depths are mixed (one image of each is named).
    """
    source = open_source(spec) if isinstance(spec, str) else spec
    spec = shown(spec if isinstance(spec, str) else spec.name)
    rows = _chosen(len(source.train.images), limit, seed)
    skips = on_bad_image == "skip"
    notes = list(source.notes)
    plan = None
    if not isinstance(source.train.images, Arrays):
        plan, remarks = _planned(source.train.images, rows, (size, centre), channels, statistics, skips=skips)
        notes += [f"{spec}: {remark}" for remark in remarks]
    elif statistics is not None and statistics.levels is not None:
        raise UserError(f"{spec} has 8-bit images, where {statistics.levels.depth} ones are expected")
    stored = [_store(source.train.images, rows, plan, channels, memory, skips)]
    if statistics is None:
        statistics, remarks = _statistics(source, stored[0].images)
        statistics = statistics._replace(levels=None if plan is None else plan.levels)
        notes += [f"{spec}: {remark}" for remark in remarks]
    splits = [_image_set(spec, source.train, stored[0], statistics)]
    if source.test is not None:
        rows = np.arange(len(source.test.images))
        stored.append(_store(source.test.images, rows, plan, channels, memory, skips))
        splits.append(_image_set(f"{spec} (test)", source.test, stored[1], statistics))
    for split in splits:
        if not len(split):
            raise UserError(f"{split.name}: none of its images can be read; {split.skipped[0]}")
        if split.skipped:
            count = len(split.skipped)
            several = f"{count:,} images cannot be read and are skipped, the first of them"
            notes.append(f"{split.name}: {several if count > 1 else '1 image is skipped'}: {split.skipped[0]}")
        if plan is not None and plan.photos:
            notes.append(
                f"{split.name}: images are larger than views of {plan.size} px, so each view is cut out of the "
                "original, and each batch is decoded when it is needed"
            )
        elif not split.in_memory and memory:
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


class Layout(NamedTuple):
    """How images are kept.

    Attributes:
        size: the side S to which they are squashed; of photographs, the side of the evaluation view.
        side: the largest shorter side that was found.
        photos: whether they are photographs, which stay encoded.
        threads: whether they are large enough to decode in threads (see `EncodedImages`).
        centre: the side of the central square of a photograph that evaluation sees, as a share of the shorter
            side.
    """

    size: int
    side: int
    photos: bool
    threads: bool
    centre: float = PHOTO_CENTRE


def layout_of(headers: Sequence[Header], size: int | None, centre: float | None = None) -> Layout:
    """How images are kept.

    Square images that all have the same side of up to 96 pixels are stored as they are. Others are stored at the
    longest side found, if that is at most 8/7 of the view's side (256 for a view of 224, the default). Images with
    a longer side are photographs.

    Args:
        headers: the headers of some of the images.
        size: side of the views in pixels; 224 if None.
        centre: the side of the central square that evaluation sees, as a share of the shorter side, if it is
            known; below 1, all images are photographs.
    """
    sides = {side for h in headers for side in (h.height, h.width)}
    longest, view = max(sides), size or _VIEW
    side, threads = max(min(h.height, h.width) for h in headers), longest > _SMALL
    is_stored = (len(sides) == 1 and longest <= _SMALL) or longest <= round(view / PHOTO_CENTRE)
    if is_stored and (centre or 1.0) == 1:
        return Layout(longest, side, photos=False, threads=threads)
    return Layout(view, side, photos=True, threads=threads, centre=centre or PHOTO_CENTRE)


def _planned(
    images: Encoded,
    rows: Index,
    view: tuple[int | None, float | None],
    channels: int | None,
    statistics: Statistics | None = None,
    *,
    skips: bool = False,
) -> tuple[EncodedImages, list[str]]:
    """Decide how images are stored from the headers of up to 1,000 of them, and note anything unusual in these.

    Raises:
        UserError: a header cannot be read (unless broken images are skipped), the channel counts or depths are
            mixed, or a channel of deep images is constant.
    """
    if skips:
        seen, headers = readable_headers(images, rows)
        if not seen:  # the first one's reason stands for all
            seen, headers = [int(rows[0])], [header_of(images, int(rows[0]))]
    else:
        seen = rows[spread(len(rows), HEADERS)].tolist()
        headers = [header_of(images, row) for row in seen]
    found = EncodedImages(
        source=images,
        rows=rows,
        **layout_of(headers, *view)._asdict(),
        channels=channels or headers[0].channels,
        convert=channels is not None,
        example=images.name(seen[0]),
    )
    for row, header in zip(seen, headers, strict=True):
        found.check(row, header.channels)
    counts = Counter(remark for header in headers for remark in header.remarks)
    remarks = remarks_on(counts, len(headers))
    if statistics is not None:
        return replace(found, levels=statistics.levels), remarks
    levels, notes = levels_of(images, seen, headers, found.channels, skips=skips)
    return replace(found, levels=levels), remarks + notes


def readable_headers(images: Encoded, rows: Index) -> tuple[list[int], list[Header]]:
    """The headers of up to 1,000 images, evenly spaced, and their rows; broken ones are skipped.

    If all of these are broken, it is the first image of the whole set that can be read.
    """
    seen: list[int] = []
    headers: list[Header] = []
    picked = rows[spread(len(rows), HEADERS)]
    for place, row in enumerate(itertools.chain(picked, rows)):
        if place >= len(picked) and headers:
            break
        try:
            headers.append(header_of(images, int(row)))
        except BrokenImageError:
            continue
        seen.append(int(row))
    return seen, headers


def remarks_on(counts: Mapping[str, int], seen: int) -> list[str]:
    """Properties of images that are not read as they are, one sentence each.

    Args:
        counts: a header's remark -> images with it.
        seen: how many images were looked at.
    """
    return [f"{count:,} of {seen:,} images looked at have {what}" for what, count in counts.items()]


class _Stored(NamedTuple):
    """The images of a split, and which they are.

    Attributes:
        rows: (N,) int64, the source's images in this order.
        images: decoded, (N, C, S, S) uint8, if they fit into memory.
        sizes: (N, 2) int32, heights and widths of the originals, if these differ from S.
        skipped: the images that are broken, left out.
    """

    rows: Index
    images: Tensor | EncodedImages
    sizes: Tensor | None = None
    skipped: tuple[Broken, ...] = ()


def _store(
    source: Encoded, rows: Index, plan: EncodedImages | None, channels: int | None, memory: int, skips: bool
) -> _Stored:
    """The images of some rows, decoded if they fit into memory, without the broken ones if these are skipped."""
    if isinstance(source, Arrays):
        return _Stored(rows, _converted(source.images[torch.from_numpy(rows)], channels))
    assert plan is not None
    images = replace(plan, source=source, rows=rows)
    if images.photos or images.nbytes > memory:
        if not skips:
            images.check_headers()
            return _Stored(rows, images)
        broken = images.check_pixels()
        kept = np.delete(rows, list(broken))
        return _Stored(kept, replace(images, rows=kept), None, _in_order(broken))
    found: dict[int, Broken] = {}
    with Waiting("decoding images", len(images)) as waiting:
        pixels, sizes = images.read(range(len(images)), found if skips else None, waiting)
    if found:
        whole = torch.ones(len(rows), dtype=torch.bool)
        whole[list(found)] = False
        pixels, sizes, rows = pixels[whole], sizes[whole], rows[whole.numpy()]
    return _Stored(rows, pixels, None if bool((sizes == images.size).all()) else sizes, _in_order(found))


def _in_order(broken: Mapping[int, Broken]) -> tuple[Broken, ...]:
    return tuple(broken[position] for position in sorted(broken))


def _converted(images: Tensor, channels: int | None) -> Tensor:
    if channels is None or channels == images.shape[1]:
        return images
    try:
        pixels = convert(images.permute(0, 2, 3, 1).numpy(), channels)
    except ValueError as error:
        raise UserError(str(error)) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _image_set(name: str, split: Split, stored: _Stored, moments: Statistics) -> ImageSet:
    return ImageSet(
        name,
        stored.images,
        None if split.labels is None else split.labels[torch.from_numpy(stored.rows)],
        *moments,
        sizes=stored.sizes,
        classes=split.classes,
        skipped=stored.skipped,
        fingerprint=Fingerprint.of(split.images.entries()),
    )


def _statistics(source: Source, images: Tensor | EncodedImages) -> tuple[Statistics, list[str]]:
    """Mean and standard deviation of each channel for normalisation, and notes on unusual values."""
    channels = images.shape[1] if isinstance(images, Tensor) else images.channels
    if (source.statistics and channels == 3) or not len(images):
        return source.statistics or Statistics((0.0,) * channels, (1.0,) * channels), []
    counts = count_values(images)
    mean, std = moments_of(counts)
    notes = []
    if min(std) < 1 / 255:
        notes.append("a channel is constant, so it is centred but not scaled")
        std = tuple(s if s >= 1 / 255 else 1.0 for s in std)
    return Statistics(mean, std), notes


def count_values(images: Tensor | EncodedImages) -> Tensor:
    """How often each of the 256 values occurs in each channel, (C, 256) int64, in up to 10,000 images.

    The images are evenly spread over the set.
    """
    rows = torch.from_numpy(spread(len(images), _STATISTICS))
    channels = images.shape[1] if isinstance(images, Tensor) else images.channels
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    with Waiting("measuring the colours of images", len(rows)) as waiting:
        for start in range(0, len(rows), _PART):
            part = rows[start : start + _PART]
            counts += value_counts(images[part] if isinstance(images, Tensor) else images.read(part)[0])
            waiting.add(len(part))
    return counts


def value_counts(values: Tensor) -> Tensor:
    """How often each of the 256 values occurs in each channel, (C, 256) int64, of (B, C, H, W) uint8."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in values.unbind(1)])


def moments_of(counts: Tensor) -> Moments:
    """Per-channel mean and population standard deviation of values in [0, 1], from the counts of the 256 values.

    Sums are of integers, so the order of summation does not matter.
    """
    levels = torch.arange(256)
    pixels = counts.sum(1)
    mean, square = (counts @ levels).double() / pixels, (counts @ levels.square()).double() / pixels
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
