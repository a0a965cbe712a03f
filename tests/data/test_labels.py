"""Parquet: labels of any kind, metadata that lie, and files that rows name."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rankgap.data import load_data
from rankgap.errors import UserError
from tests.data.pictures import chw, encoded, pixels, write

ROWS = 6


def table(labels: Any, metadata: bytes | None = None, path: Path | None = None) -> Any:
    images = [{"bytes": encoded(pixels(seed=i)), "path": None} for i in range(len(labels))]
    found = pa.table({"image": images, "label": labels})
    found = found.replace_schema_metadata(None if metadata is None else {b"huggingface": metadata})
    if path is not None:
        pq.write_table(found, path)
    return found


def names(*given: object) -> bytes:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(given)}}
    return json.dumps({"info": {"features": features}}).encode()


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([9_000_001, 1_440_764, 15_075_141], ["1440764", "9000001", "15075141"]),
        ([1_700_000_000_002, 1_700_000_000_001, -5], ["-5", "1700000000001", "1700000000002"]),
        ([-1, 1, 1], ["-1", "1"]),
        ([2.5, -0.5, 1e300], ["-0.5", "2.5", "1e+300"]),
        ([True, False, True], ["False", "True"]),
        (["n02", "n01", "n02"], ["n01", "n02"]),
        ([b"\xe9", b"a", b"a"], ["a", "\\xe9"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([3, 2, 1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001", None, None]),
        ([datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)] * 2, ["2020-01-01", "2020-01-02"]),
    ],
)
def test_labels_of_any_kind_are_numbered(tmp_path: Path, values: Any, classes: list[str | None]) -> None:
    table(values, path=tmp_path / "train.parquet")
    train, _ = load_data(f"hf:{tmp_path}")
    assert train.classes is not None
    assert train.labels is not None
    assert len(train.classes) == len(classes)
    assert [name for name, wanted in zip(train.classes, classes, strict=True) if wanted not in (None, name)] == []
    assert sorted(set(train.labels.tolist())) == list(range(len(classes)))


def test_both_splits_number_the_same_values_alike(tmp_path: Path) -> None:
    table([70, 900, 70], path=tmp_path / "train.parquet")
    table([5, 900, 70], path=tmp_path / "test.parquet")
    train, test = load_data(f"hf:{tmp_path}")
    assert test is not None
    assert train.labels is not None
    assert test.labels is not None
    assert train.classes == test.classes == ["70", "900", "5"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0], [2, 1, 0])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, None, 1], "is empty in 1 rows"),
        ([[0], [1], [1]], "more than one value"),
        ([-1, -1, -1], "-1 in every row"),
        ([-1, 0, 1], "-1 in some rows"),
        ([0.0, float("nan"), 1.0], "not a number"),
        (list(range(10**12, 10**12 + 51)), "another value in every row"),
    ],
)
def test_a_column_that_cannot_be_classes_is_left_out_with_the_reason(
    tmp_path: Path, values: Any, reason: str
) -> None:
    table(values, path=tmp_path / "train.parquet")
    train, _ = load_data(f"hf:{tmp_path}")
    assert (train.labels, train.classes) == (None, None)
    assert any("no labels, because the column label" in note and reason in note for note in train.notes)


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[" * 100_000,
        b"[]",
        b'{"info": 3}',
        b'{"info": {"features": [1]}}',
        b'{"info": {"features": {"gone": {"_type": "Image"}, "label": {"_type": "Image"}}}}',
        b'{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": "ab"}}}}',
        names("only one"),
        names(1, 2, 3),
    ],
)
def test_metadata_that_do_not_fit_the_table_are_left_alone(tmp_path: Path, metadata: bytes) -> None:
    table([0, 1, 7], metadata, tmp_path / "train.parquet")
    train, _ = load_data(f"hf:{tmp_path}")
    assert train.classes == ["0", "1", "7"]
    assert torch.equal(train.batch([1]).images[0], chw(pixels(seed=1)))


def test_debris_beside_the_tables_is_not_read(tmp_path: Path) -> None:
    table([0, 1, 0], path=tmp_path / "train.parquet")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._train.parquet", "__MACOSX/train.parquet"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    assert len(load_data(f"hf:{tmp_path}")[0]) == 3


def test_names_of_the_training_table_serve_a_test_table_without_metadata(tmp_path: Path) -> None:
    table([1, 0, 1], names("cat", "dog"), tmp_path / "train.parquet")
    table([1, 1, 0], None, tmp_path / "test.parquet")
    train, test = load_data(f"hf:{tmp_path}")
    assert test is not None
    assert test.labels is not None
    assert train.classes == test.classes == ["cat", "dog"]
    assert test.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize("kind", ["struct", "text", "absolute"])
@pytest.mark.parametrize("below", ["", "data/"])
def test_files_that_rows_name_lie_beside_the_table(tmp_path: Path, kind: str, below: str) -> None:
    for i in range(3):
        write(tmp_path / "images" / f"{i}.png", pixels(seed=i))
    start = f"{tmp_path}/" if kind == "absolute" else ""
    paths: list[Any] = [f"{start}images/{i}.png" for i in range(3)]
    if kind == "struct":
        paths = pa.array(
            [{"bytes": None, "path": p} for p in paths],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    place = tmp_path / below / "train.parquet"
    place.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": paths}), place)
    for spec in (tmp_path, place):
        if below and spec == place and kind != "absolute":
            continue  # the set's folder is not known
        train, _ = load_data(f"hf:{spec}")
        assert torch.equal(train.batch([2]).images[0], chw(pixels(seed=2)))


@pytest.mark.parametrize("value", ["images/gone.png", "a\0b", "https://example.org/a.png"])
def test_a_file_that_is_not_there_is_named_by_its_row(tmp_path: Path, value: str) -> None:
    pq.write_table(pa.table({"image": [value]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"row 0 \(.*\) cannot be read"):
        load_data(f"hf:{tmp_path}")
