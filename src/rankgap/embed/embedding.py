"""From images to a file of features, in batches that memory need not hold together.

Shapes: N images, B in a batch, F feature width, T tokens.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rankgap.choices import OnBadImage, Precision, Side, SplitName
from rankgap.data import ImageSet, load_data
from rankgap.data.containers import Encoded
from rankgap.data.encoded import BrokenImageError
from rankgap.data.fingerprint import Fingerprint
from rankgap.data.names import shown
from rankgap.data.sources import open_source
from rankgap.data.splits import Source, Split, Statistics
from rankgap.embed.folding import fold_batch_norms
from rankgap.embed.formats import Listing, check_name, check_room, files_of, write_features
from rankgap.embed.record import Record, digest
from rankgap.embed.unfinished import Rows, Unfinished
from rankgap.errors import InterruptedRunError, UserError
from rankgap.evaluate.features import default_batch, feature_batches
from rankgap.model.backbones import TokenEncoder
from rankgap.run.devices import MOST_WORKERS, find_device, find_precision, find_workers
from rankgap.run.encoder import TIMM, TrainedEncoder, load_encoder
from rankgap.run.files import check_writable, replace_file, writing
from rankgap.run.saved import library_versions

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True, slots=True)
class Embedding:
    """The work of embedding a data set, before it is done.

    Attributes:
        out: the file of features.
        record: how the features are computed.
        listing: names, splits and labels of the images.
        notes: how the images were read, one sentence each.
        skipped: images that cannot be read and are left out, one line each.
        before_skipped: number of images before the first of these.
        module: normalised images (B, C, S, S) -> features (B, F), or tokens (B, T, F), on the device.
        parts: the images of each split.
        workers: processes that decode files ahead.
        overwrite: whether `out`, and what was begun of it on other images, may be replaced.
    """

    out: Path
    record: Record
    listing: Listing
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    before_skipped: int
    module: nn.Module
    parts: tuple[ImageSet, ...]
    workers: int
    overwrite: bool

    def run(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Compute what is missing, batch by batch, and write the file.

        Args:
            progress: called with the number of images done, at the start and after each batch.

        Raises:
            UserError: an image is broken, a feature is not finite, or a file cannot be written.
            InterruptedRunError: by Ctrl-C. What is done is kept, and the next run continues there.
        """
        with writing(self.out.parent):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        path = self.out.with_name(f"{self.out.name}.unfinished")
        with Unfinished(
            path, self.record, overwrite=self.overwrite, before_skipped=self.before_skipped
        ) as unfinished:
            try:
                progress(unfinished.done)
                for rows in self._missing(unfinished.done):
                    unfinished.add(rows)
                    progress(unfinished.done)
                write_features(self.out, self.record, self.listing, unfinished.finished())
            except KeyboardInterrupt as stop:
                done = f"{unfinished.done:,} of {self.record.count:,} images"
                raise InterruptedRunError(
                    f"interrupted after {done}: the same command continues there", signal.SIGINT
                ) from stop
            except BrokenImageError as error:
                raise UserError(
                    f"{error}; with --on-bad-image skip, the command goes on without such images"
                ) from error
        unfinished.remove()
        left_out = self.out.with_name(f"{self.out.name}.skipped.txt")
        left_out.unlink(missing_ok=True)  # of the file that was here before
        if self.skipped:
            replace_file(left_out, "\n".join([*self.skipped, ""]).encode())

    def _missing(self, done: int) -> Iterator[Rows]:
        """The features of all images after the first ones, batch by batch."""
        record = self.record
        names = iter(self.listing.names[done:])
        for images in self.parts:
            if done >= len(images):
                done -= len(images)
                continue
            for features, _ in feature_batches(
                self.module,
                images,
                size=record.size,
                batch_size=record.batch_size,
                dtype=_DTYPES.get(record.precision),
                mean=record.mean,
                std=record.std,
                workers=0 if images.in_memory else self.workers,
                centre=record.centre if images.in_memory else 1.0,  # files are cut as they are decoded
                first=done,
            ):
                rows = features.cpu().numpy()
                named = [next(names) for _ in rows]
                bad = ~np.isfinite(rows).reshape(len(rows), -1).all(1)
                if bad.any():
                    raise UserError(
                        f"the features of {named[int(bad.argmax())]} are not finite: choose another checkpoint"
                    )
                yield rows
            done = 0


def embed_images(
    encoder: str | Path,
    data: str,
    out: str | Path,
    *,
    checkpoint: str = "last",
    branch: Side = "online",
    tokens: bool = False,
    split: SplitName = "all",
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision = "32-true",
    on_bad_image: OnBadImage = "error",
    overwrite: bool = False,
) -> Embedding:
    """Prepare the embedding of a data set: all that can be refused is refused here. Its `run` does the work.

    Images are seen as in the run's evaluation: resized, cut at the centre and normalised as the encoder's own
    were, and converted between grey and RGB if need be. They are decoded, embedded and written in batches, so
    memory does not grow with their number. An embedding that was interrupted is continued by the next one with the
    same encoder, images and options, and the file is then the same, bit by bit.

    Args:
        encoder: a run folder; or timm:NAME, a timm model with its pretrained weights.
        data: digits, cifar10, cifar100, folder:DIR or hf:NAME_OR_DIR.
        out: the file: .parquet, .npy (its names and labels go to a .json file beside it) or .safetensors.
        checkpoint: one of the run's checkpoints: last, best, or one like epoch-0010.
        branch: the branch whose encoder is used.
        tokens: patch tokens, or the places of a feature map, (N, T, F), instead of one vector for each image.
        split: train, test, or all images.
        batch_size: images per forward pass; by default 64 on a CPU, else 256.
        workers: processes that decode files ahead; by default 0 on a CPU, else one per core.
        precision: of the forward pass.
        on_bad_image: skip leaves out images that cannot be read, and lists them beside the file.
        overwrite: replace an existing file.

    Raises:
        UserError: there is no such encoder, there are no such images, or none that the encoder takes; or `out`
            exists, or cannot be written.

    Example:
        >>> work = embed_images("runs/a", "folder:photos", "features.parquet")  # doctest: +SKIP
        >>> work.run()  # doctest: +SKIP
    """
    place = Path(out)
    check_name(place)
    for file in files_of(place):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists: choose another --out, or replace it with --overwrite")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
    if workers is not None and not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers must be from 0 to {MOST_WORKERS}, got {workers}")
    check_writable(place.parent)
    trained = load_encoder(encoder, checkpoint=checkpoint, branch=branch, tokens=tokens)
    weights = digest(trained.encoder)
    opened = open_source(data)
    splits = _chosen(opened, split)
    images = _loaded(opened, splits, trained, on_bad_image)
    listing, skipped, before_skipped = _listing(splits, images)
    device = find_device("auto")
    network = trained.encoder.to(device)
    fold_batch_norms(network.network)
    module: nn.Module = TokenEncoder(network) if tokens else network
    example = torch.zeros(1, len(trained.mean), trained.size, trained.size, device=device)
    with torch.inference_mode():
        shape = tuple(module(example).shape[1:])
    record = Record(
        encoder=_named(encoder, checkpoint, branch),
        weights=weights,
        data=_absolute(data),
        images={name: _fingerprint(each) for name, each in images.items()},
        rows={name: len(each) for name, each in images.items()},
        size=trained.size,
        centre=trained.centre,
        mean=trained.mean,
        std=trained.std,
        levels=trained.levels,
        shape=shape,
        batch_size=batch_size or default_batch(device),
        precision=find_precision(precision, device),
        rankgap=library_versions()["rankgap"],
    )
    check_room(place, record, listing)
    return Embedding(
        out=place,
        record=record,
        listing=listing,
        notes=tuple(next(iter(images.values())).notes),
        skipped=skipped,
        before_skipped=before_skipped,
        module=module,
        parts=tuple(images.values()),
        workers=find_workers(workers, device),
        overwrite=overwrite,
    )


def _chosen(source: Source, split: SplitName) -> dict[str, Split]:
    """The chosen splits, by name."""
    found = {"train": source.train} | ({} if source.test is None else {"test": source.test})
    if split == "all":
        return found
    if split not in found:
        raise UserError(f"{source.name} has no {split} split: choose --split train, or leave it out")
    return {split: found[split]}


def _loaded(
    source: Source, splits: Mapping[str, Split], encoder: TrainedEncoder, on_bad_image: OnBadImage
) -> dict[str, ImageSet]:
    """The images of the splits as the encoder takes them. Files are decoded when a batch needs them."""
    first, *others = splits.values()
    images = load_data(
        replace(source, train=first, test=others[0] if others else None),
        size=encoder.size,
        channels=len(encoder.mean),
        memory=0,
        on_bad_image=on_bad_image,
        statistics=Statistics(encoder.mean, encoder.std, encoder.levels),
        centre=encoder.centre,
    )
    return {name: each for name, each in zip(splits, images, strict=False) if each is not None}


def _listing(splits: Mapping[str, Split], images: Mapping[str, ImageSet]) -> tuple[Listing, tuple[str, ...], int]:
    """Names, splits and labels of the images that can be read, what is skipped, and how many come before."""
    names: list[str] = []
    before: int | None = None
    labels: list[str | None] = []
    for split, found in images.items():
        source: Encoded = splits[split].images
        broken = {each.name for each in found.skipped}
        rows = [k for k in range(len(source)) if not broken or source.name(k) not in broken]
        if broken and before is None:
            before = len(names) + next((place for place, k in enumerate(rows) if place != k), len(rows))
        names += [source.short(k) for k in rows]
        labels += _classes(found)
    return (
        Listing(
            names=names,
            splits=[split for split, found in images.items() for _ in range(len(found))],
            labels=labels if any(label is not None for label in labels) else None,
        ),
        tuple(str(broken) for found in images.values() for broken in found.skipped),
        len(names) if before is None else before,
    )


def _classes(images: ImageSet) -> list[str | None]:
    """The class of each image; None where there is no label."""
    if images.labels is None:
        return [None] * len(images)
    names = images.classes
    return [
        None if label < 0 else str(label) if names is None else names[label] for label in images.labels.tolist()
    ]


def _fingerprint(images: ImageSet) -> Fingerprint:
    assert images.fingerprint is not None  # of every set that a spec names
    return images.fingerprint


def _named(encoder: str | Path, checkpoint: str, branch: Side) -> str:
    if str(encoder).startswith(TIMM):
        return str(encoder)
    return shown(f"{Path(encoder).resolve()}, {checkpoint}, {branch} branch")


def _absolute(data: str) -> str:
    """A data spec that is found from any folder."""
    kind, _, place = data.partition(":")
    path = Path(place).expanduser()
    return f"{kind}:{path.resolve()}" if place and path.exists() else data
