"""A set of uint8 images, read in batches by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rankgap.data.crops import Boxes, Crops, Shape, crops_of
from rankgap.data.encoded import Broken, EncodedImages
from rankgap.data.fingerprint import Fingerprint
from rankgap.data.levels import Levels
from rankgap.data.splits import Statistics


class Batch(NamedTuple):
    """A batch of B images.

    Attributes:
        images: (B, C, S, S) uint8: whole images squashed to the stored square; of photographs, the central square
            that evaluation sees.
        sizes: (B, 2) int32, height and width of squashed originals; None if the images are not squashed.
        labels: (B,) int64, or None.
    """

    images: Tensor
    sizes: Tensor | None
    labels: Tensor | None


class ImageSet:
    """N images, either in memory or decoded when a batch asks for them.

    Args:
        name: the set's name, for messages.
        images: the images in memory, (N, C, S, S) uint8, or encoded.
        labels: (N,) int64, or None.
        mean: per-channel mean of values in [0, 1].
        std: per-channel population standard deviation of values in [0, 1].
        levels: how the values of deep images became 8 bits; None if the images have 8 bits.
        sizes: (N, 2) int32, original height and width of `images` in memory, if they differ from S.
        classes: the names of the labels.
        skipped: images that were left out because they cannot be read.
        notes: how the set was read, one sentence each, for the user.
        fingerprint: the fingerprint of all images of the split, before any were left out.

    Example:
        >>> from rankgap.data import load_data
        >>> train, test = load_data("digits")
        >>> train
        ImageSet('digits', 1442 images, 1 x 8 x 8, 10 classes)
        >>> train.batch([0, 5]).images.shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        name: str,
        images: Tensor | EncodedImages,
        labels: Tensor | None,
        mean: Sequence[float],
        std: Sequence[float],
        levels: Levels | None = None,
        *,
        sizes: Tensor | None = None,
        classes: Sequence[str] | None = None,
        skipped: Sequence[Broken] = (),
        notes: Sequence[str] = (),
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self.name, self.images, self.labels, self.sizes = name, images, labels, sizes
        self.mean, self.std, self.levels = tuple(mean), tuple(std), levels
        self.classes = None if classes is None else list(classes)
        self.skipped = tuple(skipped)
        self.notes = list(notes)
        self.fingerprint = fingerprint
        self.channels: int = images.shape[1] if isinstance(images, Tensor) else images.channels
        self.size: int = images.shape[2] if isinstance(images, Tensor) else images.size

    @property
    def statistics(self) -> Statistics:
        """Mean, standard deviation and levels, for other sets that are to be read in the same way."""
        return Statistics(self.mean, self.std, self.levels)

    @property
    def in_memory(self) -> bool:
        """Whether the images are in memory, decoded, so that batches need no worker processes."""
        return isinstance(self.images, Tensor)

    @property
    def _photos(self) -> EncodedImages | None:
        """The images if they are photographs."""
        return self.images if isinstance(self.images, EncodedImages) and self.images.photos else None

    @property
    def side(self) -> int:
        """The largest shorter side of an original, in pixels, as far as headers were read."""
        if isinstance(self.images, EncodedImages):
            return self.images.side
        return self.size if self.sizes is None else int(self.sizes.amin(1).amax())

    @property
    def centre(self) -> float:
        """The side of the central square that evaluation sees, as a share of an image's shorter side."""
        return 1.0 if self._photos is None else self._photos.centre

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else f"{len(self.classes or ()) or 'unnamed'} classes"
        shape = f"{self.channels} x {self.size} x {self.size}"
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {shape}, {labels})"

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Some of the images as evaluation takes them, in the order of the indices.

        Args:
            indices: B positions in [0, N).

        Raises:
            UserError: an image that is decoded for the batch is broken or has other channels; the message names
                it.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[index]
        if isinstance(self.images, Tensor):
            return Batch(self.images[index], None if self.sizes is None else self.sizes[index], labels)
        if self.images.photos:
            return Batch(self.images.centres(index), None, labels)
        images, sizes = self.images.read(index)
        return Batch(images, sizes, labels)

    def for_views(
        self, indices: Sequence[int] | Tensor, shapes: Sequence[Shape], draw: Callable[[Tensor, Tensor], Boxes]
    ) -> Batch | Crops:
        """Some of the images as random views need them: crops of photographs, and other images whole.

        Args:
            indices: B positions in [0, N).
            shapes: of the V views.
            draw: heights and widths of the originals, each float32 (B,) -> their crops; called for photographs.

        Raises:
            UserError: as for `batch`.
        """
        if self._photos is None:
            return self.batch(indices)
        return crops_of(self._photos, indices, shapes, draw)

    def choice(self, count: int, seed: int = 0) -> Tensor:
        """The positions of the images that `sample` chooses, int64, in the set's order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values

    def sample(self, count: int, seed: int = 0) -> ImageSet:
        """A random choice of at most `count` images; photographs stay encoded, all others are decoded in memory.

        Args:
            count: the largest number of images.
            seed: of the choice; the same seed gives the same images.
        """
        chosen = self.choice(count, seed)
        if self._photos is not None:
            kept = replace(self._photos, rows=self._photos.rows[chosen.numpy()])
            labels = None if self.labels is None else self.labels[chosen]
            return ImageSet(self.name, kept, labels, *self.statistics, classes=self.classes)
        batch = self.batch(chosen)
        return ImageSet(
            self.name, batch.images, batch.labels, *self.statistics, sizes=batch.sizes, classes=self.classes
        )
