from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankgap.data import load_data
from rankgap.data.fingerprint import Fingerprint
from tests.data.pictures import encoded, pixels, write


def mark(spec: str) -> Fingerprint:
    found = load_data(spec, on_bad_image="skip")[0].fingerprint
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        write(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", pixels(seed=i))
    np.save(tmp_path / "data" / "a" / "4.npy", pixels())
    return tmp_path / "data"


def test_a_moved_folder_is_the_same_and_a_changed_one_says_how(folder: Path, tmp_path: Path) -> None:
    then = mark(f"folder:{folder}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert (then.images, then.nbytes) == (5, sum(path.stat().st_size for path in files))
    folder = folder.rename(tmp_path / "elsewhere")
    assert mark(f"folder:{folder}") == then
    assert then.difference(mark(f"folder:{folder}")) is None
    # What is skipped or left out by a limit still belongs to the data.
    limited = load_data(f"folder:{folder}", limit=2)[0]
    assert limited.fingerprint == then
    write(folder / "b" / "1.png", pixels((12, 13)))
    other = then.difference(now := mark(f"folder:{folder}"))
    assert other == f"the same names, but other sizes ({then.nbytes:,} bytes then, {now.nbytes:,} now)"
    assert then.same_order(now)
    (folder / "b" / "1.png").rename(folder / "b" / "one.png")
    assert then.difference(mark(f"folder:{folder}")) == "5 images as before, but with other names"
    (folder / "b" / "one.png").unlink()
    assert then.difference(now := mark(f"folder:{folder}")) == "5 images then, 4 now"
    assert not then.same_order(now)


def test_two_files_that_change_their_places_are_other_images(folder: Path) -> None:
    write(folder / "b" / "1.png", pixels((13, 13)))
    then = mark(f"folder:{folder}")
    os.rename(folder / "b" / "1.png", folder / "swap")
    os.rename(folder / "b" / "3.png", folder / "b" / "1.png")
    os.rename(folder / "swap", folder / "b" / "3.png")
    now = mark(f"folder:{folder}")
    assert (then.images, then.nbytes, then.names) == (now.images, now.nbytes, now.names)
    assert then.sizes != now.sizes


def test_tables_arrays_and_broken_entries_have_fingerprints_too(folder: Path, tmp_path: Path) -> None:
    contents = [encoded(pixels(seed=i)) for i in range(3)]
    sizes = [len(content) for content in contents]
    bare = tmp_path / "bare"
    bare.mkdir()
    pq.write_table(pa.table({"image": pa.array(contents, pa.binary())}), bare / "train.parquet")
    found = mark(f"hf:{bare}")
    assert found == Fingerprint.of([(b"", size) for size in sizes])
    # The Hub's layout, with a row that is empty and one whose bytes lie in a file beside the table.
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": contents[0], "path": "é.png"}, None, {"bytes": None, "path": "a/0.png"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder / "train.parquet")
    size = (folder / "a" / "0.png").stat().st_size
    wanted = [("é.png".encode(), sizes[0]), (b"", 0), (b"a/0.png", size)]
    assert mark(f"hf:{folder}") == Fingerprint.of(wanted)
    pq.write_table(pa.table({"file_name": ["a/0.png", "a/gone.png"]}), folder / "train.parquet")
    assert mark(f"hf:{folder}") == Fingerprint.of([(b"a/0.png", size), (b"a/gone.png", 0)])
    assert mark("digits") == Fingerprint.of([(b"", 64)] * 1442)
    (folder / "a" / "gone.png").symlink_to(folder / "nowhere")
    assert mark(f"folder:{folder}").images == 6
