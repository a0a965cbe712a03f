"""Images passed from Python: arrays, tensors, PIL images and paths, read by the same rules as files.

Shapes: N images, C channels, (H, W) size of an image, S stored side.
"""

from __future__ import annotations

import io
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rankgap.data.channels import convert
from rankgap.data.containers import Arrays, Encoded
from rankgap.data.decoding import ImageError, encode
from rankgap.data.encoded import EncodedImages, header_of
from rankgap.data.labels import number
from rankgap.data.levels import FULL_SCALE, TYPES, Levels, Values, check_depth, check_finite, rounded
from rankgap.data.loading import layout_of
from rankgap.data.names import shown
from rankgap.data.npy import check_axes
from rankgap.data.sources import GIVEN
from rankgap.data.splits import Source, Split
from rankgap.errors import UserError

FEW = 4  # channels; an axis this short is never a side of an image

Stack = Tensor | npt.NDArray[Any]


def pixels(images: Stack, channels: int | None = None, levels: Levels | None = None) -> Tensor:
    """Decoded images as uint8, channels first.

    Args:
        images: one image or a stack, as for `channels_last`. Without levels, uint8, or uint16 at full scale.
        channels: the number of channels to convert to; None keeps the images' own.
        levels: of a run's deep images: the values are then of this kind too, and mapped by them.

    Returns:
        (C, H, W), or (N, C, H, W).

    Raises:
        UserError: another type or shape, values that are not finite, or channels that cannot be converted.
    """
    array = channels_last(images, channels)
    if levels is None and array.dtype.name not in FULL_SCALE:
        as_bytes = "byte()" if isinstance(images, Tensor) else "astype(numpy.uint8)"
        raise UserError(
            f"expected images of uint8 (0 to 255), got {array.dtype}; if the values lie in [0, 1], pass "
            f"(255 * images).round().{as_bytes}"
        )
    try:
        check_depth(array.dtype, levels)
        check_finite(array)
        values = array if channels is None else convert(array, channels)
    except ValueError as error:
        raise UserError(f"images of shape {tuple(images.shape)}: {error}") from error
    if values.dtype != np.uint8:
        values = rounded((levels or Levels.full(values.shape[-1])).apply(values))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))


def channels_last(images: Stack, channels: int | None = None) -> Values:
    """Decoded images as an array (H, W, C), or (N, H, W, C), in their own type.

    The channel axis is the one whose length is `channels`, or at most 4. If this fits neither axis, channels come
    first in a tensor and last in an array. If it fits both, they come first in a tensor, and an array is rejected.

    Args:
        images: one image (H, W), (H, W, C) or (C, H, W), or N of them with four axes, of any of `TYPES`.
        channels: the number of channels that the images may have.

    Raises:
        UserError: another type or shape.
    """
    is_tensor = isinstance(images, Tensor)
    array: Values = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype.name not in TYPES:
        raise UserError(f"expected images of {', '.join(TYPES)}, got {array.dtype}")
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise UserError(f"expected images (H, W), (H, W, C) or N of them (N, H, W, C), got {array.shape}")
    array = np.asarray(array, array.dtype.newbyteorder("="))
    if array.ndim == 2:
        return array[:, :, None]
    if _channels_first(array.shape[-3:], channels, is_tensor=is_tensor):
        return np.moveaxis(array, -3, -1)
    return array


def _channels_first(shape: Sequence[int], channels: int | None, *, is_tensor: bool) -> bool:
    first, _, last = shape
    if (first == channels) != (last == channels):
        return first == channels
    if (first <= FEW) != (last <= FEW):
        return first <= FEW
    if not is_tensor and first <= FEW:
        raise UserError(f"cannot tell which axis of {tuple(shape)} holds the channels: pass a tensor (C, H, W)")
    if not is_tensor:
        try:
            check_axes(tuple(shape))
        except ValueError as error:
            raise UserError(str(error)) from error
    return is_tensor


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence of images, each encoded as a file, so that the decoder for files applies to all of them.

    Args:
        images: PIL images, paths, arrays or tensors; or pairs whose first entry is one of these, as torchvision's
            data sets have them.
    """

    images: Sequence[Any] | Tensor

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> BinaryIO:
        """The image as an open file."""
        image = self.images[index]
        if isinstance(image, tuple) and image:
            image = image[0]
        if isinstance(image, str | os.PathLike):
            return open(image, "rb")
        if isinstance(image, Image.Image):
            return encode(image)
        if isinstance(image, Tensor | np.ndarray):
            return _as_npy(channels_last(image))
        raise ImageError(f"expected a PIL image, a path, or an array or tensor, got {type(image).__name__}")

    def short(self, index: int) -> str:
        """The image's number."""
        return f"image {index}"

    def name(self, index: int) -> str:
        """The image's path if it has one, else its number."""
        image = self.images[index]
        return shown(os.fsdecode(image)) if isinstance(image, str | os.PathLike) else self.short(index)

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Only numbers: finding the sizes would mean encoding every image."""
        return ((b"%d" % index, 0) for index in range(len(self)))


def _as_npy(array: Values) -> BinaryIO:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32) if array.dtype == np.float64 else array)
    file.seek(0)
    return file


def decode_item(
    items: Items, index: int, *, size: int, channels: int, levels: Levels | None = None, centre: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Decode one image the way a run's evaluation does.

    Args:
        items: the images.
        index: the index of the image.
        size: side of the view in pixels.
        channels: C, to which the image is converted.
        levels: of the run's deep images; None if they have 8 bits.
        centre: the side of the central square that evaluation sees, as a share of the shorter side; below 1 if the
            run's images are photographs.

    Returns:
        (1, C, S, S) uint8, and (1, 2) int32: height and width of the original if it is squashed, else None. It is
        not squashed if the run's images are photographs or if it is one itself.

    Raises:
        UserError: the image cannot be read or converted; the message names it.
    """
    layout = layout_of([header_of(items, index)], size, centre)
    decoder = EncodedImages(
        source=items,
        rows=np.array([index]),
        **layout._replace(threads=False)._asdict(),
        channels=channels,
        convert=True,
        example="",
        levels=levels,
    )
    return (decoder.centres([0]), None) if layout.photos else decoder.read([0])


def given_source(images: Any, labels: Any = None, test: Any = None, test_labels: Any = None) -> Source:
    """Training and test images from Python as a data set.

    Args:
        images: a stack (N, H, W, C), (N, C, H, W) or (N, H, W) of any of `TYPES`, or a sequence as in `Items`.
        labels: N labels of any kind, or None.
        test: test images, or None.
        test_labels: their labels, or None.

    Raises:
        UserError: these are not images, or the number of labels differs.
    """
    if test is None and test_labels is not None:
        raise UserError("test_labels need test images: pass them as test")
    given = {"train": (images, labels)} | ({} if test is None else {"test": (test, test_labels)})
    sets = {name: _images(f"{GIVEN} {name}", each) for name, (each, _) in given.items()}
    if not all(isinstance(each, Arrays) for each in sets.values()):  # both are then read by the rules for files
        sets = {name: Items(each.images) if isinstance(each, Arrays) else each for name, each in sets.items()}
    values = {name: _values(name, of, len(sets[name])) for name, (_, of) in given.items() if of is not None}
    numbers, classes = number(values, "train") if "train" in values else ({}, [])
    splits = {
        name: Split(each, numbers.get(name), classes if name in numbers else None) for name, each in sets.items()
    }
    return Source(GIVEN, splits["train"], splits.get("test"))


def _images(label: str, images: Any) -> Encoded:
    if isinstance(images, Tensor | np.ndarray) and images.dtype != object:
        if images.ndim not in (3, 4):
            raise UserError(f"{label}: expected a stack of images (N, H, W, C), got {tuple(images.shape)}")
        stack = channels_last(images[:, None] if images.ndim == 3 else images)
        if stack.dtype == np.uint8 and stack.shape[1] == stack.shape[2]:
            return Arrays(label, torch.from_numpy(np.ascontiguousarray(np.moveaxis(stack, -1, -3))))
        return Items(torch.from_numpy(np.ascontiguousarray(stack)).movedim(-1, -3))
    if isinstance(images, str | bytes) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(
            f"{label}: expected an array or tensor (N, H, W, C), or a sequence of images, got "
            f"{type(images).__name__}"
        )
    return Items(images)


def _values(name: str, labels: Any, count: int) -> list[Hashable]:
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if not all(isinstance(value, Hashable) for value in values):
        raise UserError(f"expected one label for each {name} image, got {np.shape(values)}")
    if len(values) != count:
        raise UserError(f"expected {count} labels, one for each {name} image, got {len(values)}")
    return values
