"""An inspection of images before training: what there is, what is broken, and what training would refuse."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rankgap.data.channels import convert
from rankgap.data.containers import Encoded
from rankgap.data.cutting import whole
from rankgap.data.decoding import Header, ImageError, decode, read_header
from rankgap.data.deep import MixedDepthsError, levels_of
from rankgap.data.encoded import Broken, EncodedImages, in_parts, read_image
from rankgap.data.image_set import ImageSet
from rankgap.data.levels import Levels, Pixels
from rankgap.data.loading import (
    Layout,
    layout_of,
    moments_of,
    readable_headers,
    remarks_on,
    value_counts,
)
from rankgap.data.names import shown
from rankgap.data.sources import open_source
from rankgap.data.splits import Split
from rankgap.data.waiting import Waiting
from rankgap.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The contents of a data set, from decoding every image of both splits once.

    Attributes:
        name: the spec.
        notes: how the set was read, one sentence each.
        problems: what would stop training, each with the remedy, except broken images, which it can skip.
        train: the number of training images, broken ones included.
        test: the number of test images, broken ones included; None without a test set.
        broken: the images of both splits that cannot be read.
        sizes: (height, width) of the originals, in pixels -> number of images, the most frequent first.
        channels: channels -> number of images, the most frequent first.
        formats: file format -> number of images, the most frequent first.
        types: type of a value, such as uint16 -> number of images, the most frequent first.
        classes: class -> number of training images; None without labels.
        duplicates: the number of training images whose bytes equal those of an earlier training image.
        leaked: the number of test images whose bytes equal those of a training image.
        mean: per-channel mean of values in [0, 1], of the readable training images as stored.
        std: per-channel population standard deviation of values in [0, 1], of the same images.
        images: the readable training images, decoded when they are asked for; if grey and colour are mixed, all
            are converted to 3 channels.
    """

    name: str
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    train: int
    test: int | None
    broken: tuple[Broken, ...]
    sizes: dict[tuple[int, int], int]
    channels: dict[int, int]
    formats: dict[str, int]
    types: dict[str, int]
    classes: dict[str, int] | None
    duplicates: int
    leaked: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: ImageSet

    def side(self, axis: int) -> tuple[int, float, int]:
        """The smallest, median and largest height (axis 0) or width (axis 1) of the originals, in pixels."""
        sides = np.repeat([s[axis] for s in self.sizes], list(self.sizes.values()))
        return int(sides.min()), float(np.median(sides)), int(sides.max())

    def sample(self, count: int, seed: int = 0) -> tuple[list[str], ImageSet]:
        """A seeded random choice of up to `count` readable training images, and their names within the set."""
        images = self.images.images
        assert isinstance(images, EncodedImages)
        chosen = self.images.choice(count, seed)
        return [images.source.short(int(images.rows[k])) for k in chosen.tolist()], self.images.sample(count, seed)


@dataclass(slots=True)
class _Found:
    """The contents of a split, or of a part of it."""

    rows: list[int] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    digests: list[bytes] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    values: Tensor | int = 0  # (C, 256), how often each value occurs

    def add(self, other: _Found) -> None:
        self.rows += other.rows
        self.broken += other.broken
        self.sizes += other.sizes
        self.channels += other.channels
        self.formats += other.formats
        self.types += other.types
        self.digests += other.digests
        self.remarks += other.remarks
        self.values = self.values + other.values


def inspect(spec: str, *, size: int | None = None, channels: int | None = None) -> Inspection:
    """Decode every image that a spec names, and report what there is.

    Args:
        spec: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR.
        size: side of the views to be drawn, in pixels.
        channels: the number of channels (1 or 3) to convert all images to.

    Raises:
        UserError: there is no such data set, none of its images can be read, or a channel of deep images is
            constant.

    Example:
        >>> report = inspect("digits")
        >>> report.train, report.channels, report.sizes, report.broken, report.problems
        (1442, {1: 1797}, {(8, 8): 1797}, (), ())
    """
    source = open_source(spec)
    spec = shown(spec)
    splits = [source.train] if source.test is None else [source.train, source.test]
    rows, headers = readable_headers(source.train.images, np.arange(len(source.train.images)))
    if not headers:
        raise UserError(f"{spec}: none of its images can be read; {_first_reason(source.train.images)}")
    counts = Counter(h.channels for h in headers)
    aim = channels or (3 if set(counts) == {1, 3} else counts.most_common(1)[0][0])
    layout = layout_of(headers, size)
    levels, level_notes, problems = None, list[str](), list[str]()
    try:
        levels, level_notes = levels_of(source.train.images, rows, headers, aim, skips=True)
    except MixedDepthsError as error:
        problems.append(str(error))
    found = [_inspect_split(split.images, layout, aim, levels) for split in splits]
    train = found[0]
    if not train.rows:
        raise UserError(f"{spec}: none of its images can be read; {_first_reason(source.train.images)}")
    assert isinstance(train.values, Tensor)
    mean, std = source.statistics[:2] if source.statistics and aim == 3 else moments_of(train.values)
    both = _Found()
    for part in found:
        both.add(part)
    seen = both.sizes.total()
    remarks = remarks_on(both.remarks, seen) + level_notes
    notes = (*source.notes, *(f"{spec}: {remark}" for remark in remarks))
    images = EncodedImages(
        source=source.train.images,
        rows=np.array(train.rows),
        **layout._asdict(),
        channels=aim,
        convert=True,
        example="",
        levels=levels,
    )
    labels = None if source.train.labels is None else source.train.labels[torch.tensor(train.rows)]
    distinct = set(train.digests)
    classes = source.train.classes
    return Inspection(
        name=spec,
        notes=notes,
        problems=(*problems, *_problems(both, channels)),
        train=len(source.train.images),
        test=None if source.test is None else len(source.test.images),
        broken=tuple(both.broken),
        sizes=dict(both.sizes.most_common()),
        channels=dict(both.channels.most_common()),
        formats=dict(both.formats.most_common()),
        types=dict(both.types.most_common()),
        classes=_class_counts(source.train),
        duplicates=len(train.digests) - len(distinct),
        leaked=sum(d in distinct for d in found[-1].digests) if len(found) > 1 else 0,
        mean=mean,
        std=std,
        images=ImageSet(spec, images, labels, mean, std, levels, classes=classes, notes=notes),
    )


def _first_reason(images: Encoded) -> str:
    """Why the first image cannot be read."""
    try:
        read_image(images, 0, lambda file: decode(file, whole(8)))
    except ImageError as error:
        return f"{images.name(0)}: {error}"
    return f"{images.name(0)} can be decoded, but its header cannot be read"


def _inspect_split(images: Encoded, layout: Layout, channels: int, levels: Levels | None) -> _Found:
    def look(part: range) -> _Found:
        found, pixels = _Found(), []
        for row in part:
            try:
                content = read_image(images, row, lambda file: file.read())
                values, header = _decoded(content, layout.size, channels, levels)
            except ImageError as error:
                found.broken.append(Broken(images.name(row), str(error)))
                continue
            found.digests.append(hashlib.blake2b(content, digest_size=16).digest())
            found.sizes[header.height, header.width] += 1
            found.channels[header.channels] += 1
            found.formats[header.format] += 1
            found.types[header.dtype] += 1
            found.remarks.update(header.remarks)
            try:
                pixels.append(convert(values, channels))
            except ValueError:  # its channel count is reported among the problems
                continue
            found.rows.append(row)
        if pixels:
            found.values = value_counts(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        return found

    total = _Found()
    with Waiting("decoding images", len(images)) as waiting:
        for part in in_parts(look, len(images), threads=layout.threads):
            total.add(part)
            waiting.add(len(part.digests) + len(part.broken))
    return total


def _decoded(content: bytes, size: int, channels: int, levels: Levels | None) -> tuple[Pixels, Header]:
    """An image (S, S, C): with levels in C channels, else or where they cannot be converted in its own."""
    if levels is None:  # converted once its own channels are counted
        (values,), header = decode(io.BytesIO(content), whole(size))
        return values, header
    found = read_header(io.BytesIO(content)).channels
    if found != channels and {found, channels} != {1, 3}:
        channels, levels = found, Levels(low=(0.0,) * found, high=(1.0,) * found, depth=levels.depth)
    (values,), header = decode(io.BytesIO(content), whole(size), channels, levels)
    return values, header


def _problems(found: _Found, channels: int | None) -> tuple[str, ...]:
    problems = []
    wanted = {channels} if channels else set()
    if foreign := sorted(set(found.channels) - wanted - {1, 3}):
        if len(found.channels) > 1 or channels:
            counts = ", ".join(f"{found.channels[c]:,} with {c}" for c in foreign)
            problems.append(f"mixed channel counts that cannot be converted ({counts}); save all images alike")
    elif channels is None and len(found.channels) > 1:
        problems.append("mixed channel counts; pass --channels 3 (or 1) to convert all images")
    return tuple(problems)


def _class_counts(split: Split) -> dict[str, int] | None:
    if split.labels is None:
        return None
    counts = torch.bincount(split.labels, minlength=len(split.classes or ())).tolist()
    return dict(zip(split.classes or map(str, range(len(counts))), counts, strict=True))
