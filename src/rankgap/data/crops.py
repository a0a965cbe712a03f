"""Random crops of photographs, cut out of the originals while these are decoded.

Shapes: B images, V views, C channels, S side of a view.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rankgap.data.cutting import Cut, Cuts
from rankgap.data.decoding import Header, ImageError, read_header
from rankgap.data.encoded import EncodedImages, broken_image, in_parts, read_image

_KEPT = 2**20  # bytes; a file of up to this is read once for its header and its pixels


class Shape(NamedTuple):
    """The side of a view in pixels, and how a crop is resized to it."""

    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


class Boxes(Protocol):
    """The crops of V views of B images, each (V, B), in whole pixels of the upright originals."""

    @property
    def top(self) -> Tensor:
        """Pixels above the crops."""

    @property
    def left(self) -> Tensor:
        """Pixels to the left of the crops."""

    @property
    def height(self) -> Tensor:
        """The crops' heights."""

    @property
    def width(self) -> Tensor:
        """The crops' widths."""


class Crops(NamedTuple):
    """Random crops of B photographs, decoded from the originals.

    Attributes:
        crops: V tensors, (B, C, S, S) uint8, each with its view's S.
        parameters: the crops' places, and all that was drawn with them.
    """

    crops: list[Tensor]
    parameters: Any


def crops_of(
    images: EncodedImages,
    indices: Sequence[int] | Tensor,
    shapes: Sequence[Shape],
    draw: Callable[[Tensor, Tensor], Boxes],
) -> Crops:
    """Crops of some of the images. Errors are those of `EncodedImages.read`.

    All headers are read before the crops are drawn, and each image is then decoded once for all of its views.

    Args:
        images: the photographs.
        indices: B positions in [0, N).
        shapes: of the V views.
        draw: heights and widths of the originals, each float32 (B,) -> their crops.
    """
    rows = images.rows[np.asarray(indices, dtype=np.int64)].tolist()
    sizes = np.empty((2, len(rows)), np.float32)
    kept: list[bytes | None] = [None] * len(rows)

    def look(part: range) -> None:
        for k in part:
            try:
                header, kept[k] = read_image(images.source, rows[k], _header_and_content)
            except ImageError as error:
                raise broken_image(images.source, rows[k], error) from error
            sizes[:, k] = header.height, header.width

    for _ in in_parts(look, len(rows), threads=images.threads):
        pass
    boxes = draw(*torch.from_numpy(sizes).unbind())
    places = torch.stack([boxes.top, boxes.left, boxes.height, boxes.width], 2).int().transpose(0, 1).tolist()

    def cuts_of(place: int) -> Cuts:
        def cuts(height: int, width: int) -> Sequence[Cut]:
            drawn = tuple(sizes[:, place])
            # The orientation of a PNG may stand behind its pixels: then the header did not know it.
            swapped = drawn == (width, height) != (height, width)
            if not swapped and drawn != (height, width):
                raise ImageError("the file changed while it was read")
            found = []
            for (top, left, h, w), shape in zip(places[place], shapes, strict=True):
                found.append(Cut(left, top, w, h, *shape) if swapped else Cut(top, left, h, w, *shape))
            return found

        return cuts

    crops, _ = images.cut(indices, [shape.size for shape in shapes], cuts_of, contents=kept)
    return Crops(crops, boxes)


def _header_and_content(file: BinaryIO) -> tuple[Header, bytes | None]:
    """The header of an image, and the file's content if it is small or in memory anyway."""
    if isinstance(file, io.BytesIO):
        content = file.getvalue()
    elif file.seek(0, os.SEEK_END) <= _KEPT:
        file.seek(0)
        content = file.read()
    else:
        file.seek(0)
        return read_header(file), None
    return read_header(io.BytesIO(content)), content
