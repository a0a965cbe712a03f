"""Reading encoded images: one by one, or decoded into tensors.

Shapes: N images in a set, B in a batch, V views, C channels, S side of a view or of a stored image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rankgap.data.channels import unconvertible
from rankgap.data.containers import Encoded
from rankgap.data.cutting import PHOTO_CENTRE, Cuts, centre, whole
from rankgap.data.decoding import Header, ImageError, decode, read_header
from rankgap.data.levels import Levels, Pixels, check_depth
from rankgap.data.names import said
from rankgap.data.waiting import Waiting
from rankgap.errors import UserError

_T = TypeVar("_T")
_PART = 32  # images that a thread takes at once


def in_parts(function: Callable[[range], _T], count: int, *, threads: bool = True) -> Iterator[_T]:
    """The function's results on consecutive parts of range(count), in order, computed by one thread per core.

    Threads help because Pillow releases the GIL while it decodes. Worker processes of a `DataLoader` use no
    threads, because the other workers use the other cores.

    Args:
        function: what to compute on a part.
        count: the length of the whole range.
        threads: whether to use threads.
    """
    parts = [range(start, min(start + _PART, count)) for start in range(0, count, _PART)]
    if not threads or len(parts) < 2 or get_worker_info() is not None:
        yield from map(function, parts)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, parts)


class BrokenImageError(UserError):
    """An image cannot be read; the message names it and gives the reason."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An image that cannot be read.

    Attributes:
        name: the image's path, or its row.
        reason: why it cannot be read.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} cannot be read: {self.reason}"


def broken_image(source: Encoded, index: int, error: Exception) -> BrokenImageError:
    """The error for an image that cannot be read, with its name and the reason."""
    return BrokenImageError(str(Broken(source.name(index), str(error))))


def read_image(source: Encoded, index: int, look: Callable[[BinaryIO], _T]) -> _T:
    """Open one image and look at it.

    Raises:
        ImageError: it cannot be opened or decoded.
    """
    try:
        with source.open(index) as file:
            return look(file)
    except (OSError, ValueError) as error:  # ValueError: a path that is invalid on every system
        raise ImageError(getattr(error, "strerror", None) or said(error)) from error


def header_of(source: Encoded, index: int) -> Header:
    """The header of one image.

    Raises:
        BrokenImageError: the image cannot be read.
    """
    try:
        return read_image(source, index, read_header)
    except ImageError as error:
        raise broken_image(source, index, error) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedImages:
    """Images of a source that are decoded when they are read.

    Args:
        source: the encoded images.
        rows: (N,) int64, the source's images that belong to the set, in this order.
        size: stored side S in pixels; of photographs, the side of the evaluation view.
        side: the largest shorter side of an original, in pixels, as far as headers were read.
        photos: whether images are larger than S, so that every view is cut out of the original. If not, they are
            squashed to S, and views are made from that.
        channels: C.
        convert: whether to convert images to `channels`; if not, an image with other channels is an error.
        example: the name of an image with `channels`, for that error.
        threads: whether to decode in threads. At 32 px they double the time, because they wait for Python's lock;
            they pay from about 128 px on.
        levels: how the values of deep images become 8 bits; None if the images have 8 bits.
        centre: the side of the central square of a photograph that evaluation sees, as a share of the shorter
            side.
    """

    source: Encoded
    rows: npt.NDArray[np.int64]
    size: int
    side: int
    photos: bool
    channels: int
    convert: bool
    example: str
    threads: bool
    levels: Levels | None = None
    centre: float = PHOTO_CENTRE

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """The size of all images in bytes, decoded and squashed."""
        return len(self) * self.channels * self.size**2

    def check(self, row: int, found: int) -> None:
        """Check the channels of an image, unless images are converted.

        Args:
            row: the image's position in the source.
            found: its number of channels.

        Raises:
            UserError: the number is not `channels`; the message names this image and one with `channels`.
        """
        if not self.convert and found != self.channels:
            remedy = "save all images alike"
            if {found, self.channels} == {1, 3}:
                remedy = "pass --channels 3 (or 1) to convert all of them"
            raise UserError(
                f"mixed channel counts: {self.source.name(row)} has {found}, {self.example} has {self.channels}; "
                f"{remedy}"
            )

    def check_headers(self) -> None:
        """Read every header, so that a file that is not an image is found before training starts.

        Raises:
            UserError: an image cannot be read or converted, or has other channels or another depth; the message
                names the first such image.
        """

        def check(part: range) -> None:
            for k in part:
                row = int(self.rows[k])
                header = header_of(self.source, row)
                self.check(row, header.channels)
                try:
                    if header.channels != self.channels and {header.channels, self.channels} != {1, 3}:
                        raise unconvertible(header.channels, self.channels)
                    check_depth(header.dtype, self.levels)
                except ValueError as error:
                    raise broken_image(self.source, row, error) from error

        with Waiting("reading the headers of images", len(self)) as waiting:
            for _ in in_parts(check, len(self)):
                waiting.add(_PART)

    def check_pixels(self) -> dict[int, Broken]:
        """Decode every image once, to find those that are broken: position -> the image.

        Raises:
            UserError: an image has other channels; the message names it.
        """
        found: dict[int, Broken] = {}
        step = 8 * _PART
        with Waiting("looking for broken images", len(self)) as waiting:
            for start in range(0, len(self), step):
                part = range(start, min(start + step, len(self)))
                broken: dict[int, Broken] = {}
                self.read(part, broken)
                found |= {part[k]: image for k, image in broken.items()}
                waiting.add(len(part))
        return found

    def read(
        self,
        indices: Sequence[int] | Tensor,
        broken: dict[int, Broken] | None = None,
        waiting: Waiting | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode some of the images, squashed.

        Args:
            indices: B positions in [0, N).
            broken: takes up the images that cannot be read, by their place among the B, in place of an error; what
                is returned for them means nothing.
            waiting: is told how many are decoded.

        Returns:
            (B, C, S, S) uint8, and (B, 2) int32: height and width of the originals.

        Raises:
            BrokenImageError: an image cannot be read.
            UserError: an image has other channels; the message names it.
        """
        (images,), sizes = self.cut(indices, [self.size], lambda place: whole(self.size), broken, waiting)
        return images, sizes

    def centres(self, indices: Sequence[int] | Tensor, broken: dict[int, Broken] | None = None) -> Tensor:
        """The central squares of some of the images, decoded from the originals; errors are those of `read`.

        Args:
            indices: B positions in [0, N).
            broken: as for `read`.

        Returns:
            (B, C, S, S) uint8
        """
        (images,), _ = self.cut(indices, [self.size], lambda place: centre(self.size, self.centre), broken)
        return images

    def cut(
        self,
        indices: Sequence[int] | Tensor,
        sizes: Sequence[int],
        cuts_of: Callable[[int], Cuts],
        broken: dict[int, Broken] | None = None,
        waiting: Waiting | None = None,
        contents: Sequence[bytes | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Decode some of the images once, and cut views out of them.

        Args:
            indices: B positions in [0, N).
            sizes: the sides of the V views.
            cuts_of: the views of the image at a place among the B.
            broken: as for `read`.
            waiting: as for `read`.
            contents: the files' contents, as far as they have been read.

        Returns:
            V tensors (B, C, S, S) uint8, and (B, 2) int32: height and width of the originals.

        Raises:
            BrokenImageError, UserError: as for `read`.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)].tolist()
        originals = np.empty((len(rows), 2), np.int32)
        images = [np.empty((len(rows), self.channels, size, size), np.uint8) for size in sizes]

        def fill(part: range) -> None:
            for k in part:
                content = None if contents is None else contents[k]

                def look(file: BinaryIO, place: int = k) -> tuple[list[Pixels], Header]:
                    return decode(file, cuts_of(place), self.channels if self.convert else None, self.levels)

                try:
                    if content is None:
                        views, header = read_image(self.source, rows[k], look)
                    else:
                        views, header = look(io.BytesIO(content))
                except ImageError as error:
                    if broken is None:
                        raise broken_image(self.source, rows[k], error) from error
                    broken[k] = Broken(self.source.name(rows[k]), str(error))
                    continue
                self.check(rows[k], header.channels)
                for made, view in zip(images, views, strict=True):
                    made[k] = view.transpose(2, 0, 1)
                originals[k] = header.height, header.width

        for _ in in_parts(fill, len(rows), threads=self.threads):
            if waiting is not None:
                waiting.add(_PART)
        return [torch.from_numpy(each) for each in images], torch.from_numpy(originals)
