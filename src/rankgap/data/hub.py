"""Data sets of the Hugging Face Hub, and local folders of Parquet files in its layout."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from rankgap.data.containers import Rows
from rankgap.data.labels import column_values, named, number
from rankgap.data.names import said, shown
from rankgap.data.scanning import is_debris
from rankgap.data.splits import MissingDataError, Source, Split
from rankgap.errors import UserError

_IN_MEMORY = 2 * 2**30  # bytes of Parquet; larger tables are memory-mapped through the cache of `datasets`
_TESTS = ("test", "validation", "valid", "val", "dev")
_SPLIT = re.compile(rf"(?:^|[-_./])(train|{'|'.join(_TESTS)})(?=[-_./])")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_PATHS = ("file_name", "file_path", "image_path", "path")
_LABELS = ("label", "labels", "fine_label", "class")


class _Table(NamedTuple):
    """The table of a split.

    Attributes:
        table: a `pyarrow.Table`, or a memory-mapped table of `datasets`.
        schema: of the table, with the metadata of the Hub.
        folders: where files that the table names may lie.
    """

    table: Any
    schema: pa.Schema
    folders: tuple[str, ...] = ()


def open_hub(place: str) -> Source:
    """A local folder of Parquet files if there is one of that name, else a data set of the Hub.

    A data set of the Hub is downloaded and cached. The training split is `train`, or else the first. The test
    split is the first of test, validation, valid, val and dev that has labels, or else the first of them. The
    image column is the one with the Hub's Image feature, or else the first with image bytes, or with the paths of
    files, which lie beside the table. The label column is `label`, `labels`, `fine_label` or `class`, or else the
    first ClassLabel; its values may be of any kind, and are numbered here. As on the Hub, -1 means that a split is
    not labelled. Metadata that do not fit the table are left alone.

    Args:
        place: a folder, a Parquet file, or a name on the Hub.

    Raises:
        MissingDataError: there is no such folder or data set, or the Hub cannot be reached.
        UserError: the table has no rows, or no column of images.
    """
    folder = Path(place).expanduser()
    if folder.is_dir() or (folder.is_file() and folder.suffix == ".parquet"):
        tables = _local_tables(folder)
    elif place.startswith((".", "/", "~")):
        raise MissingDataError(f"hf:{place}: there is no folder {folder}")
    else:
        tables = _load_dataset(place, path=place)
    name = f"hf:{shown(place)}"
    first = "train" if "train" in tables else next(iter(tables))
    notes: list[str] = []
    splits = _splits(name, tables, first, notes)
    tests = [t for t in _TESTS if t in splits and t != first]
    test = next((t for t in tests if splits[t].labels is not None), tests[0] if tests else None)
    images, classes = splits[first].images, splits[first].classes
    assert isinstance(images, Rows)
    text = f"{name}: {len(images)} training images (split {first}, column {images.column}), "
    text += f"{len(classes)} classes" if classes else "no labels"
    if test is not None:
        text += f"; {len(splits[test].images)} test images (split {test})"
    return Source(name, splits[first], splits.get(test or ""), [text, *notes])


def _local_tables(place: Path) -> dict[str, _Table]:
    """The tables of a folder's Parquet files, by the split in their names; `train` if the name has none."""
    files: dict[str, list[Path]] = {}
    folder = place.parent if place.is_file() else place
    for path in [place] if place.is_file() else sorted(folder.rglob("*.parquet")):
        relative = path.relative_to(folder)
        if any(map(is_debris, relative.parts)):
            continue
        match = _SPLIT.search(relative.as_posix())
        files.setdefault(match[1] if match else "train", []).append(path)
    if not files:
        raise MissingDataError(
            f"hf:{folder}: no .parquet files in it; for a folder of image files write folder:{folder}"
        )
    # Files that a table names lie beside it, or below the folder of the set.
    beside = {
        split: tuple(dict.fromkeys([*(str(path.parent) for path in paths), str(folder)]))
        for split, paths in files.items()
    }
    if sum(path.stat().st_size for paths in files.values() for path in paths) > _IN_MEMORY:
        arguments = {split: [str(path) for path in paths] for split, paths in files.items()}
        tables = _load_dataset(str(place), path="parquet", data_files=arguments)
    else:
        try:
            tables = {split: _read_tables(paths) for split, paths in files.items()}
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"hf:{shown(str(place))}: {said(error)}") from error
    return {split: table._replace(folders=beside[split]) for split, table in tables.items()}


def _read_tables(paths: list[Path]) -> _Table:
    tables = [pq.ParquetFile(path).read() for path in paths]
    bare = [table.replace_schema_metadata(None) for table in tables]
    return _Table(pa.concat_tables(bare), tables[0].schema)


def _load_dataset(place: str, **arguments: Any) -> dict[str, _Table]:
    import datasets

    try:
        found = datasets.load_dataset(**arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = said(error)
        raise MissingDataError(
            f"hf:{place} cannot be loaded: {reason}; a local folder of Parquet files needs no network"
        ) from error
    return {split: _Table(data.data, data.features.arrow_schema) for split, data in found.items()}


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The Hub's features, which are in the schema's metadata; none where these cannot be read."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: f for name, f in found.items() if isinstance(f, dict) and name in schema.names}


def _image_column(label: str, schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str:
    """The column of images, preferably one that the metadata declare as such."""

    def is_struct(kind: pa.DataType) -> bool:
        return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    def is_bytes(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_text(kind: pa.DataType) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    kinds = {str(field.name): field.type for field in schema}
    declared = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    fits = (
        [name for name in declared if is_struct(kinds[name]) or is_bytes(kinds[name]) or is_text(kinds[name])],
        [name for name, kind in kinds.items() if is_struct(kind)],
        [name for name, kind in kinds.items() if name in _IMAGES and is_bytes(kind)],
        [name for name, kind in kinds.items() if name in (*_IMAGES, *_PATHS) and is_text(kind)],
    )
    for names in fits:
        if names:
            return names[0]
    raise UserError(f"{label}: expected a column of images, got {', '.join(schema.names)}")


def _splits(name: str, tables: dict[str, _Table], first: str, notes: list[str]) -> dict[str, Split]:
    """The splits of a set; their labels share one numbering, unless each table names its own."""
    images: dict[str, Rows] = {}
    values: dict[str, list[Hashable]] = {}
    classes: dict[str, list[str]] = {}
    labels: dict[str, Tensor] = {}
    for split, (table, schema, folders) in tables.items():
        label = f"{name} {split}"
        features = _features(schema)
        column = _image_column(label, schema, features)
        if not table.num_rows:
            raise UserError(f"{label}: the table has no rows")
        images[split] = Rows(label, table.select([column]), column, folders)
        candidates = [n for n in _LABELS if n in schema.names and n != column]
        candidates += [n for n, f in features.items() if f.get("_type") == "ClassLabel" and n not in candidates]
        if not candidates:
            continue
        found, reason = column_values(table.column(candidates[0]))
        if found is None:
            notes.append(f"{label}: no labels, because the column {candidates[0]} {reason}")
            continue
        values[split] = found
        names: Any = features.get(candidates[0], {}).get("names")
        if (numbers := named(found, names)) is not None:
            labels[split], classes[split] = numbers, names
    for split in values.keys() - labels.keys():  # a table without metadata of its own
        names = classes.get(first)
        if (numbers := named(values[split], names)) is not None:
            labels[split], classes[split] = numbers, names
    if labels.keys() != values.keys():
        leading = first if first in values else next(iter(values))
        labels, shared = number(values, leading)
        classes = dict.fromkeys(values, shared)
    return {split: Split(rows, labels.get(split), classes.get(split)) for split, rows in images.items()}
