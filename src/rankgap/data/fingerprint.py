"""A small record with which a run recognises its images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """The number, names and sizes of a split's images, regardless of their pixels and location.

    Attributes:
        images: the number of images.
        nbytes: their total encoded size.
        names: digest of their names, in order.
        sizes: digest of their sizes, in order.
    """

    images: int
    nbytes: int
    names: str
    sizes: str

    @classmethod
    def of(cls, entries: Iterable[tuple[bytes, int]]) -> Fingerprint:
        """The fingerprint of images, given as (name, size in bytes).

        Example:
            >>> then = Fingerprint.of([(b"a.png", 10), (b"b.png", 20)])
            >>> then.difference(Fingerprint.of([(b"a.png", 10)]))
            '2 images then, 1 now'
        """
        count, total = 0, 0
        names, sizes = (hashlib.blake2b(digest_size=8) for _ in range(2))
        for name, size in entries:
            count, total = count + 1, total + size
            names.update(name + b"\0")
            sizes.update(b"%d," % size)
        return cls(images=count, nbytes=total, names=names.hexdigest(), sizes=sizes.hexdigest())

    def same_order(self, now: Fingerprint) -> bool:
        """Whether other images have the same names in the same order, and so are shuffled alike."""
        return (self.images, self.names) == (now.images, now.names)

    def difference(self, now: Fingerprint) -> str | None:
        """How other images differ from these; None if their fingerprints are equal."""
        if self.images != now.images:
            return f"{self.images:,} images then, {now.images:,} now"
        if self.names != now.names:
            return f"{self.images:,} images as before, but with other names"
        if self.sizes != now.sizes:
            return f"the same names, but other sizes ({self.nbytes:,} bytes then, {now.nbytes:,} now)"
        return None
