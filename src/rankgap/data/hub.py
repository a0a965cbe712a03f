"""Data sets of the Hugging Face Hub, and local folders of Parquet files in its layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rankgap.data.encoded import Rows
from rankgap.data.splits import Source, Split
from rankgap.errors import UserError

_IN_MEMORY = 2 * 2**30  # bytes of Parquet; larger tables are memory-mapped through the cache of `datasets`
_TESTS = ("test", "validation", "valid", "val", "dev")
_SPLIT = re.compile(rf"(?:^|[-_./])(train|{'|'.join(_TESTS)})(?=[-_./])")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABELS = ("label", "labels", "fine_label", "class")


def open_hub(place: str) -> Source:
    """A local folder of Parquet files if there is one of that name, else a data set of the Hub.

    A data set of the Hub is downloaded and cached. The training split is `train`, or else the first. The test
    split is the first of test, validation, valid, val and dev that has labels, or else the first of them. The
    image column is the one with the Hub's Image feature, or else the first with image bytes. The label column is
    `label`, `labels`, `fine_label` or `class`, or else the first ClassLabel. As on the Hub, a label below 0 means
    that the split is not labelled.

    Args:
        place: a folder, or a name on the Hub.

    Raises:
        UserError: there is no such folder, data set or column, or the Hub cannot be reached.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        tables = _local_tables(folder)
    elif place.startswith((".", "/", "~")):
        raise UserError(f"hf:{place}: there is no folder {folder}")
    else:
        tables = _load_dataset(place, path=place)
    name = f"hf:{place}"
    splits = {key: _split(f"{name} {key}", table, schema) for key, (table, schema) in tables.items()}
    first = "train" if "train" in splits else next(iter(splits))
    tests = [t for t in _TESTS if t in splits and t != first]
    test = next((t for t in tests if splits[t].labels is not None), tests[0] if tests else None)
    images = splits[first].images
    assert isinstance(images, Rows)
    classes = splits[first].classes
    labels = "no labels" if splits[first].labels is None else f"{len(classes) if classes else 'unnamed'} classes"
    text = f"{name}: {len(images)} training images (split {first}, column {images.column}), {labels}"
    if test is not None:
        text += f"; {len(splits[test].images)} test images (split {test})"
    return Source(name, splits[first], splits.get(test or ""), [text])


def _local_tables(folder: Path) -> dict[str, tuple[Any, pa.Schema]]:
    """The tables of a folder's Parquet files, by the split in their names; `train` if the name has none."""
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        said = _SPLIT.search(path.relative_to(folder).as_posix())
        files.setdefault(said[1] if said else "train", []).append(str(path))
    if not files:
        raise UserError(f"hf:{folder}: no .parquet files in it; for a folder of image files write folder:{folder}")
    if sum(Path(f).stat().st_size for paths in files.values() for f in paths) > _IN_MEMORY:
        return _load_dataset(str(folder), path="parquet", data_files=files)
    try:
        return {split: _read_tables(paths) for split, paths in files.items()}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"hf:{folder}: {str(error).splitlines()[0]}") from error


def _read_tables(paths: list[str]) -> tuple[Any, pa.Schema]:
    tables = [pq.ParquetFile(path).read() for path in paths]
    return pa.concat_tables(tables), tables[0].schema


def _load_dataset(place: str, **arguments: Any) -> dict[str, tuple[Any, pa.Schema]]:
    import datasets

    try:
        found = datasets.load_dataset(**arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"hf:{place} cannot be loaded: {reason}; a local folder of Parquet files needs no network"
        ) from error
    return {split: (data.data, data.features.arrow_schema) for split, data in found.items()}


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The Hub's features, which are in the schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    features: dict[str, dict[str, Any]] = json.loads(text)["info"]["features"] if text else {}
    return {name: f for name, f in features.items() if isinstance(f, dict)}


def _image_column(label: str, schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str:
    for name, feature in features.items():
        if feature.get("_type") == "Image":
            return name
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in schema:
        if field.name in _IMAGES and (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)):
            return str(field.name)
    raise UserError(f"{label}: expected a column of images, got {', '.join(schema.names)}")


def _split(label: str, table: Any, schema: pa.Schema) -> Split:
    features = _features(schema)
    image = _image_column(label, schema, features)
    if not table.num_rows:
        raise UserError(f"{label}: the table has no rows")
    named = [n for n in _LABELS if n in schema.names]
    named += [n for n, f in features.items() if f.get("_type") == "ClassLabel" and n not in named]
    labels, classes = _labels(table, schema, features, named[0]) if named else (None, None)
    return Split(Rows(label, table.select([image]), image), labels, classes)


def _labels(
    table: Any, schema: pa.Schema, features: dict[str, dict[str, Any]], column: str
) -> tuple[Tensor | None, list[str] | None]:
    values = table.column(column)
    kind = schema.field(column).type
    if values.null_count:
        return None, None
    if pa.types.is_integer(kind):
        labels = torch.tensor(values.to_pylist())  # to_numpy would import pandas
        return (None, None) if int(labels.min()) < 0 else (labels, features.get(column, {}).get("names"))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        classes, numbers = np.unique(values.to_pylist(), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), [str(c) for c in classes]
    return None, None
