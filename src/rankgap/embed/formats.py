"""Files of features: Parquet, NumPy and safetensors, written batch by batch and read back.

Every file holds the features in float32, the images' names, their labels where there are any, and the record.
Parquet holds them as columns and metadata, safetensors as a tensor and metadata. A .npy file holds the features
alone: a .json file of the same name beside it holds the rest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from rankgap.data.names import said
from rankgap.embed.record import Record
from rankgap.errors import UserError, attempt, unknown, unusable
from rankgap.run.files import replace_file, replacing
from rankgap.run.reader import plain, read, read_json

KEY = "rankgap"  # of the record in a file's metadata
_GROUP = 2**25  # bytes of features in a row group of Parquet, as whole batches
_LONGEST_HEADER = 100_000_000  # bytes that readers of safetensors accept

Batches = Iterable[npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Listing:
    """What a file says of each image beside its features.

    Attributes:
        names: the images' names within the data set.
        splits: the split of each image.
        labels: the class of each image, or None; None if no image has one.
    """

    names: list[str]
    splits: list[str]
    labels: list[str | None] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureFile:
    """A file of features, read.

    Attributes:
        features: (N, F) float32; tokens (N, T, F).
        listing: names, splits and labels of the N images.
        record: how the features were computed.
    """

    features: npt.NDArray[np.float32]
    listing: Listing
    record: Record


def _write_parquet(path: Path, record: Record, listing: Listing, batches: Batches) -> None:
    kind: pa.DataType = pa.float32()
    for side in reversed(record.shape):
        kind = pa.list_(kind, side)
    columns: dict[str, Any] = {"name": pa.array(listing.names, pa.string())}
    if listing.labels is not None:
        columns["label"] = pa.array(listing.labels, pa.string())
    columns["split"] = pa.array(listing.splits, pa.string())
    fields = [*((name, values.type) for name, values in columns.items()), ("features", kind)]
    schema = pa.schema(fields, metadata={KEY: _json(record)})
    start = 0
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, schema, use_dictionary=[n for n in columns if n != "name"]) as writer,
    ):
        for rows in _grouped(batches, _GROUP):
            values: Any = pa.array(rows.reshape(-1))
            for side in reversed(record.shape):
                values = pa.FixedSizeListArray.from_arrays(values, side)
            told = [column.slice(start, len(rows)) for column in columns.values()]
            writer.write_table(pa.Table.from_arrays([*told, values], schema=schema), row_group_size=len(rows))
            start += len(rows)


def _read_parquet(path: Path) -> FeatureFile:
    with pq.ParquetFile(path) as file:
        record = _record((file.schema_arrow.metadata or {}).get(KEY.encode()), path)
        if (rows := file.metadata.num_rows) != record.count:
            raise ValueError(f"it has {rows:,} rows of {record.count:,}")
        features = np.empty((record.count, *record.shape), np.float32)
        told: dict[str, list[Any]] = {name: [] for name in file.schema_arrow.names if name != "features"}
        start = 0
        for batch in file.iter_batches(1024):
            values = batch.column("features")
            for _ in record.shape:
                values = values.flatten()
            features[start : start + len(batch)] = values.to_numpy().reshape(len(batch), *record.shape)
            start += len(batch)
            for name, column in told.items():
                column.extend(batch.column(name).to_pylist())
    return FeatureFile(features=features, listing=_listing(told, record.count, path), record=record)


def _write_npy(path: Path, record: Record, listing: Listing, batches: Batches) -> None:
    with replacing(path) as file:
        shape = (record.count, *record.shape)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        _write_rows(file, batches)
        _beside(path).unlink(missing_ok=True)  # never one file's features beside another's names
    replace_file(_beside(path), json.dumps({KEY: plain(record), **_columns(listing)}).encode())


def _read_npy(path: Path) -> FeatureFile:
    if not _beside(path).is_file():
        raise UserError(f"{path}: expected the images' names in {_beside(path).name} beside it: embed again")
    told = read_json(_beside(path))
    if not isinstance(told, dict):
        raise ValueError(f"{_beside(path).name} holds no keys")
    record = _record(told.get(KEY), _beside(path))
    features = np.load(path, mmap_mode="r")
    if features.dtype != np.float32 or features.shape != (record.count, *record.shape):
        raise ValueError(f"it holds {features.dtype} {features.shape}")
    return FeatureFile(features=features, listing=_listing(told, record.count, path), record=record)


def _write_safetensors(path: Path, record: Record, listing: Listing, batches: Batches) -> None:
    header = _safetensors_header(record, listing)
    with replacing(path) as file:  # the library's own writer takes whole tensors
        file.write(struct.pack("<Q", len(header)) + header)
        _write_rows(file, batches)


def _safetensors_header(record: Record, listing: Listing) -> bytes:
    told = {KEY: _json(record)} | {name: json.dumps(values) for name, values in _columns(listing).items()}
    size = record.count * record.row_bytes
    features = {"dtype": "F32", "shape": [record.count, *record.shape], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": told, "features": features}).encode()
    if len(header) > _LONGEST_HEADER:
        raise UserError("there are too many names for a .safetensors file: choose .parquet")
    return header + b" " * (-len(header) % 8)


def _read_safetensors(path: Path) -> FeatureFile:
    with safe_open(path, "numpy") as file:
        told = dict(file.metadata() or {})
        record = _record(told.get(KEY), path)
        columns = {name: json.loads(values) for name, values in told.items() if name != KEY}
        features = file.get_tensor("features")
    if features.dtype != np.float32 or features.shape != (record.count, *record.shape):
        raise ValueError(f"it holds {features.dtype} {features.shape}")
    return FeatureFile(features=features, listing=_listing(columns, record.count, path), record=record)


_Writer = Callable[[Path, Record, Listing, Batches], None]
FORMATS: Mapping[str, tuple[_Writer, Callable[[Path], FeatureFile]]] = {
    ".parquet": (_write_parquet, _read_parquet),
    ".npy": (_write_npy, _read_npy),
    ".safetensors": (_write_safetensors, _read_safetensors),
}


def check_name(path: Path) -> None:
    """Refuse the name of a file of features that has no known suffix, or belongs to a folder.

    Raises:
        UserError: as said.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file in it")
    if path.suffix not in FORMATS:
        raise unknown("suffix of a features file", path.suffix or path.name, FORMATS)


def files_of(path: Path) -> list[Path]:
    """The files of which a file of features consists."""
    return [path, _beside(path)] if path.suffix == ".npy" else [path]


def check_room(path: Path, record: Record, listing: Listing) -> None:
    """Refuse names that the format has no room for, before any work is done.

    Raises:
        UserError: as said.
    """
    if path.suffix == ".safetensors":
        _safetensors_header(record, listing)


def write_features(path: Path, record: Record, listing: Listing, batches: Batches) -> None:
    """Write a file completely or not at all; its suffix chooses the format.

    Args:
        path: the file.
        record: how the features were computed.
        listing: names, splits and labels.
        batches: features (B, ...) float32, one batch after the other.
    """
    FORMATS[path.suffix][0](path, record, listing, batches)


def read_features(path: str | Path) -> FeatureFile:
    """Read a file of features that `rankgap embed` has written; those of a .npy file stay on the disk.

    Raises:
        UserError: there is no such file, or it is damaged or holds something else.
    """
    place = Path(path)
    check_name(place)
    try:
        with place.open("rb"):
            pass
    except OSError as error:
        raise unusable(error, place) from error
    _, reader = FORMATS[place.suffix]
    return attempt(lambda: reader(place), lambda error: _broken(place, error), own=UserError)


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _json(record: Record) -> str:
    return json.dumps(plain(record))


def _record(told: object, path: Path) -> Record:
    if told is None:
        raise UserError(f"{path} holds no features of rankgap: write it with rankgap embed")
    return read(Record, json.loads(told) if isinstance(told, str | bytes) else told, str(path))


def _columns(listing: Listing) -> dict[str, Any]:
    columns = {"name": listing.names, "split": listing.splits}
    return columns if listing.labels is None else columns | {"label": listing.labels}


def _listing(columns: Mapping[str, Any], count: int, path: Path) -> Listing:
    names, splits = (read(list[str], columns.get(name), f"{path}, {name}") for name in ("name", "split"))
    labels = columns.get("label")
    if labels is not None:
        labels = read(list[str | None], labels, f"{path}, label")
    for values in (names, splits, labels):
        if values is not None and len(values) != count:
            raise ValueError(f"it names {len(values):,} of {count:,} images")
    return Listing(names=names, splits=splits, labels=labels)


def _broken(path: Path, error: Exception) -> UserError:
    if isinstance(error, MemoryError):
        return UserError(f"{path} does not fit into memory: write the features to a .npy file, which is mapped")
    return UserError(f"{path} is damaged or not a file of features ({said(error)}): delete it, and embed again")


def _write_rows(file: BinaryIO, batches: Batches) -> None:
    for rows in batches:
        file.write(rows.tobytes())


def _grouped(batches: Batches, size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Consecutive batches joined until they have a size in bytes."""
    held: list[npt.NDArray[np.float32]] = []
    for rows in batches:
        held.append(rows)
        if sum(each.nbytes for each in held) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
