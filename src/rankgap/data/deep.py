"""Deciding the levels of a data set from some of its images."""

from __future__ import annotations

from collections.abc import Sequence

from rankgap.data.containers import Encoded
from rankgap.data.decoding import Header, ImageError, read_values
from rankgap.data.encoded import broken_image, read_image
from rankgap.data.levels import FULL_SCALE, SAMPLE, Levels, Sampled, depth, spread
from rankgap.data.waiting import Waiting
from rankgap.errors import UserError

_BRIGHT = 2**15  # values from here on need the highest of 16 bits


class MixedDepthsError(UserError):
    """Images of a data set share no scale; the message names one of each kind."""


def levels_of(
    images: Encoded, rows: Sequence[int], headers: Sequence[Header], channels: int, *, skips: bool = False
) -> tuple[Levels | None, list[str]]:
    """The levels of deep images, decided from up to 200 of them, evenly spread; and notes that state them.

    Args:
        images: the images of the training set.
        rows: some of them.
        headers: the headers of these.
        channels: C, to which images are converted.
        skips: whether broken images are left out.

    Returns:
        The levels; None if the images have 8 bits, or are read at full scale: 16-bit images that use all their
        bits, or that are mixed with 8-bit ones.

    Raises:
        MixedDepthsError: some images are of another kind than others.
        UserError: an image is broken and not skipped, or a channel is constant.
    """
    named = {header.dtype: row for row, header in zip(rows, headers, strict=True)}
    if named.keys() <= {*FULL_SCALE} and "uint8" in named:
        deep = sum(header.dtype != "uint8" for header in headers)
        if not deep:
            return None, []
        return None, [
            f"{deep:,} of {len(headers):,} images looked at have 16 bits beside 8-bit ones, so 0 to 65,535 "
            "becomes 0 to 255 in them; if they hold fewer bits (12-bit values), save all images alike"
        ]
    kinds = {depth(dtype): dtype for dtype in named}
    if len(kinds) > 1:
        one, other = (f"{images.name(named[dtype])} has {dtype} pixels" for dtype in [*kinds.values()][:2])
        raise MixedDepthsError(f"mixed depths: {one}, {other}; save all images alike")
    sampled = Sampled()
    chosen = [rows[k] for k in spread(len(rows), SAMPLE)]
    with Waiting("looking for the levels of images", len(chosen)) as waiting:
        for row in chosen:
            try:
                sampled.add(read_image(images, row, lambda file: read_values(file, channels)))
            except ImageError as error:
                if not skips:
                    raise broken_image(images, row, error) from error
            waiting.add(1)
    if not sampled.images:
        return levels_of(images, rows, headers, channels)  # the first one's reason stands for all
    levels, note = sampled.decide(images.name(chosen[0]))
    if named.keys() == {"uint16"} and max(levels.high) >= _BRIGHT:
        return None, ["16-bit images with 16 bits in use: 0 to 65,535 becomes 0 to 255, as bright as 8-bit images"]
    return levels, [note]
