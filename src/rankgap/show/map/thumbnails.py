"""Small pictures of a data set's images, many in one JPEG, so that thousands fit into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rankgap.data.containers import Encoded
from rankgap.data.encoded import Broken, EncodedImages
from rankgap.data.fingerprint import Fingerprint
from rankgap.data.sources import open_source
from rankgap.data.splits import MissingDataError
from rankgap.data.waiting import Waiting
from rankgap.embed.formats import FeatureFile

ACROSS = 32  # pictures in a row of a sheet
SHEET = 1024  # pictures in a sheet
_QUALITY = 70


@dataclass(frozen=True, slots=True)
class Sheets:
    """Pictures of some images.

    Attributes:
        side: of a picture, in pixels.
        sheets: JPEG files as data URLs. A sheet has `SHEET` pictures in rows of `ACROSS`, the last one fewer.
        rows: the images' rows in the file of features, in the order of their pictures.
        missing: number of images whose picture is empty, because they are gone or broken.
    """

    side: int
    sheets: list[str]
    rows: list[int]
    missing: int


class Pictures:
    """The images behind a file of features, as far as they are still there.

    Args:
        found: the file.
        data: where the images are now; by default where they were.
    """

    def __init__(self, found: FeatureFile, data: str | None = None) -> None:
        self.record, self.listing = found.record, found.listing
        self.sources: dict[str, Encoded] = {}
        self.notes: list[str] = []
        try:
            source = open_source(data or self.record.data)
        except MissingDataError as error:
            if data is not None:
                raise
            self.notes.append(f"{error}; --data says where the images are now")
            return
        self.sources["train"] = source.train.images
        if source.test is not None:
            self.sources["test"] = source.test.images
        for split, then in found.record.images.items():
            if split in self.sources and (told := then.difference(Fingerprint.of(self.sources[split].entries()))):
                self.notes.append(f"the images have changed, so pictures may be of other ones: {told}")
        self._places = {
            (split, images.short(k)): k for split, images in self.sources.items() for k in range(len(images))
        }

    def sheets(self, rows: Sequence[int], side: int) -> Sheets:
        """Pictures of some images: their central squares.

        Args:
            rows: of the file of features.
            side: of a picture, in pixels, a multiple of 16.
        """
        if not self.sources:
            return Sheets(side, [], [], len(rows))
        made: list[str] = []
        missing = 0
        with Waiting("drawing small pictures", len(rows)) as waiting:
            for start in range(0, len(rows), SHEET):
                pictures, empty = self._drawn(rows[start : start + SHEET], side)
                missing += empty
                made.append(_sheet(pictures))
                waiting.add(len(pictures))
        return Sheets(side, made, list(rows), missing)

    def _drawn(self, rows: Sequence[int], side: int) -> tuple[np.ndarray, int]:
        """Pictures (B, S, S, 3), grey where there is none, and how many these are."""
        pictures = np.full((len(rows), side, side, 3), 128, np.uint8)
        empty = len(rows)
        for split, source in self.sources.items():
            own = [k for k, row in enumerate(rows) if self.listing.splits[row] == split]
            places = [(k, self._places.get((split, self.listing.names[rows[k]]))) for k in own]
            there = [(k, place) for k, place in places if place is not None]
            if not there:
                continue
            channels = len(self.record.mean)
            images = EncodedImages(
                source=source,
                rows=np.array([place for _, place in there]),
                size=side,
                side=side,
                photos=True,
                channels=channels,
                convert=True,
                example="",
                threads=True,
                levels=self.record.levels,
                centre=1.0,
            )
            broken: dict[int, Broken] = {}
            found = images.centres(range(len(there)), broken).permute(0, 2, 3, 1).numpy()
            empty -= len(there) - len(broken)
            for place, (k, _) in enumerate(there):
                if place not in broken:
                    pictures[k] = found[place, :, :, :3] if channels >= 3 else found[place, :, :, :1]
        return pictures, empty


def _sheet(pictures: np.ndarray) -> str:
    """Pictures (B, S, S, 3) side by side, in rows of 32, as a data URL."""
    count, side = pictures.shape[:2]
    down = -(-count // ACROSS)
    full = np.full((down * ACROSS, side, side, 3), 128, np.uint8)
    full[:count] = pictures
    joined = full.reshape(down, ACROSS, side, side, 3).swapaxes(1, 2).reshape(down * side, ACROSS * side, 3)
    file = io.BytesIO()
    Image.fromarray(joined).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
