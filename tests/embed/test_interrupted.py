"""Interrupted embeddings: what is kept is continued, bit by bit, or refused."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankgap.embed import embed_images, read_features
from rankgap.embed.embedding import Embedding
from rankgap.embed.unfinished import Unfinished
from rankgap.errors import InterruptedRunError, UserError
from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train
from tests.embed.photo_run import NAMES, photo, trained

FORMATS = [".parquet", ".npy", ".safetensors"]
BATCH = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("interrupted"))


def work(run: Path, out: Path, *, overwrite: bool = False, tokens: bool = False, batch: int = BATCH) -> Embedding:
    data = f"folder:{run.parent / 'photos'}"
    return embed_images(run, data, out, batch_size=batch, workers=0, overwrite=overwrite, tokens=tokens)


def unfinished(out: Path) -> Path:
    return out.with_name(out.name + ".unfinished")


def stopped(run: Path, out: Path, after: int) -> bytes:
    """Begin an embedding, press Ctrl-C after some images, and return what is kept."""

    def press(done: int) -> None:
        if done == after:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match=f"interrupted after {after} of 48 images: the same command"):
        work(run, out).run(press)
    assert not out.exists()
    return unfinished(out).read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("after", [0, 8, 24, 48])
def test_after_ctrl_c_the_same_command_gives_the_same_file(
    suffix: str, after: int, run: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"f{suffix}"
    work(run, whole).run()
    stopped(run, out, after)
    seen: list[int] = []
    work(run, out).run(seen.append)
    assert seen == list(range(after, 49, BATCH))
    assert out.read_bytes() == whole.read_bytes()
    assert not unfinished(out).exists()


KILLED = """
import os, signal, sys
from rankgap.embed import embed_images
run, data, out = sys.argv[1:]
work = embed_images(run, data, out, batch_size=8, workers=1)
work.run(lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == 16 else None)
"""


def test_a_killed_process_leaves_whole_batches(run: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "f.parquet"
    work(run, whole).run()
    script = [sys.executable, "-c", KILLED, str(run), f"folder:{run.parent / 'photos'}", str(out)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    seen: list[int] = []
    work(run, out).run(seen.append)
    assert seen[0] == 16
    assert out.read_bytes() == whole.read_bytes()


FORKING = """
import os, signal, sys
from rankgap.cli import main

pressed = []


def press():
    if not pressed:
        pressed.append(True)
        signal.raise_signal(signal.SIGINT)


os.register_at_fork(**{sys.argv[1]: press})
sys.exit(main(["embed", *sys.argv[2:], "--workers", "2", "--batch-size", "8"]))
"""


@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
def test_ctrl_c_while_workers_start_ends_the_run(moment: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    words = [moment, str(run), f"folder:{run.parent / 'photos'}", "--out", str(out)]
    found = subprocess.run([sys.executable, "-c", FORKING, *words], check=False, capture_output=True, text=True)
    assert found.stderr == "rankgap: interrupted after 0 of 48 images: the same command continues there\n"
    assert found.returncode == 130
    assert not out.exists()


def test_what_is_cut_short_or_damaged_is_computed_again_from_the_last_whole_batch(
    run: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "f.npy"
    work(run, whole).run()
    content = stopped(run, out, 24)
    batch = 8 + BATCH * 128 * 4
    flipped = bytearray(content)
    flipped[-batch - 100] ^= 1  # in the second batch
    cases = {
        content[:-1]: 16,
        content[:-batch]: 16,
        content[: -batch - 1]: 8,
        content[: -batch + 3]: 16,
        bytes(flipped): 8,
        content[: len(content) - 3 * batch]: 0,
        b"": 0,
    }
    for damaged, first in cases.items():
        unfinished(out).write_bytes(damaged)
        seen: list[int] = []
        work(run, out, overwrite=True).run(seen.append)
        assert seen[0] == first
        assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_not_finished_from_damaged_features(suffix: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"f{suffix}"

    def damage(done: int) -> None:
        if done == 48:
            content = unfinished(out).read_bytes()
            unfinished(out).write_bytes(content[:-1])

    with pytest.raises(UserError, match="has been changed by something else: repeat the command to finish it"):
        work(run, out).run(damage)
    assert not out.exists()
    work(run, out).run()
    assert read_features(out).features.shape == (48, 128)


@pytest.mark.parametrize(("broken", "kept"), [([0], 0), ([20], 16), ([23, 30], 16), ([24], 24), ([27, 47], 24)])
@pytest.mark.parametrize("workers", [0, 1])
def test_after_a_broken_image_skipping_continues_and_gives_the_same_file(
    broken: list[int], kept: int, workers: int, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.parent / "photos", tmp_path / "photos")
    data, out, whole = f"folder:{tmp_path / 'photos'}", tmp_path / "f.parquet", tmp_path / "whole.parquet"
    for row in broken:
        path = tmp_path / "photos" / NAMES[row]
        path.write_bytes(path.read_bytes()[:-40])
    options: dict[str, Any] = {"batch_size": BATCH, "workers": workers}
    with pytest.raises(UserError, match=r"cannot be read: .*; with --on-bad-image skip, the") as told:
        embed_images(run, data, out, **options).run()
    assert NAMES[broken[0]] in str(told.value)
    seen: list[int] = []
    embed_images(run, data, out, on_bad_image="skip", **options).run(seen.append)
    assert seen[0] == kept
    embed_images(run, data, whole, on_bad_image="skip", **options).run()
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.unfinished*"))


def test_skipping_an_image_that_was_read_before_drops_its_batch(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "photos", tmp_path / "photos")
    data, out, whole = f"folder:{tmp_path / 'photos'}", tmp_path / "f.npy", tmp_path / "whole.npy"
    work = embed_images(run, data, out, batch_size=BATCH, workers=0)
    with pytest.raises(InterruptedRunError):
        work.run(lambda done: signal.raise_signal(signal.SIGINT) if done == 32 else None)
    path = tmp_path / "photos" / NAMES[18]
    path.write_bytes(bytes(path.stat().st_size))  # of the same size, so that the images seem unchanged
    seen: list[int] = []
    embed_images(run, data, out, batch_size=BATCH, on_bad_image="skip").run(seen.append)
    assert seen[0] == 16
    embed_images(run, data, whole, batch_size=BATCH, on_bad_image="skip").run()
    assert out.read_bytes() == whole.read_bytes()
    begun = stopped(run, tmp_path / "g.npy", 16)
    with pytest.raises(UserError, match="was begun on 48 images that could be read, which are 47 now"):
        embed_images(run, data, tmp_path / "g.npy", batch_size=16, on_bad_image="skip").run()
    assert unfinished(tmp_path / "g.npy").read_bytes() == begun


def test_another_encoder_other_images_or_options_are_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    begun = stopped(run, out, 16)
    with pytest.raises(UserError, match=r"was begun with another shape: repeat .* or begin anew with --overwrite"):
        work(run, out, tokens=True).run()
    with pytest.raises(UserError, match="was begun with another batch size"):
        work(run, out, batch=16).run()
    other = trained(tmp_path)
    (tmp_path / "photos" / NAMES[0]).write_bytes((tmp_path / "photos" / NAMES[1]).read_bytes())
    data = f"folder:{run.parent / 'photos'}"
    with pytest.raises(UserError, match=r"was begun on other images .*the same names, but other sizes"):
        embed_images(run, f"folder:{tmp_path / 'photos'}", out, batch_size=BATCH).run()
    retrained(other)
    with pytest.raises(UserError, match="was begun with another encoder"):
        embed_images(other, data, out, batch_size=BATCH).run()
    assert unfinished(out).read_bytes() == begun
    unfinished(out).write_bytes(b"my notes\n")
    with pytest.raises(UserError, match="does not hold features that this version of rankgap has begun"):
        work(run, out).run()
    work(run, out, overwrite=True).run()
    assert read_features(out).features.shape == (48, 128)


def retrained(run: Path) -> None:
    """Another seed's weights in a run's place."""
    data = f"folder:{run.parent / 'photos'}"
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "size": 32, "protocol": (), "loggers": (), "seed": 1}
    train(TrainConfig(data=data, out=str(run), overwrite=True, **options))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file_of_features_is_refused(suffix: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"f{suffix}"
    work(run, out).run()
    content = out.read_bytes()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        out.write_bytes(content[:size])
        with pytest.raises(
            UserError, match=r"is damaged or not a file of features .*: delete it, and embed again"
        ):
            read_features(out)
    out.unlink()
    with pytest.raises(UserError, match="No such file"):
        read_features(out)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_byte_is_refused_or_leaves_a_file_that_reads(suffix: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"f{suffix}"
    work(run, out).run()
    content = out.read_bytes()
    random = np.random.default_rng(0)
    places = [*range(0, 200, 3), *random.integers(len(content) - 3000, len(content), 150)]
    refused = 0
    for place in places:
        out.write_bytes(content[:place] + bytes([random.integers(256)]) + content[place + 1 :])
        try:
            found = read_features(out)
        except UserError:
            refused += 1
        else:
            assert found.features.shape == (48, 128)
            assert {type(name) for name in found.listing.names + found.listing.splits} == {str}
    assert refused > 10


def test_an_archive_under_the_name_of_an_array_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    work(run, out).run()
    with out.open("wb") as file:
        np.savez(file, features=np.zeros((48, 128), np.float32))
    with pytest.raises(UserError, match="is damaged or not a file of features"):
        read_features(out)


def test_another_embedding_into_the_same_file_does_not_end_up_in_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    ours = work(run, out)
    theirs = Unfinished(unfinished(out), ours.record, overwrite=False)
    theirs.add(np.zeros((BATCH, 128), np.float32))

    def write_again(done: int) -> None:
        if done == 48:
            theirs._end = theirs._start
            theirs.add(np.ones((BATCH, 128), np.float32))

    with theirs, pytest.raises(UserError, match="has been changed by something else"):
        ours.run(write_again)
    assert not out.exists()


def test_a_disk_that_fills_up_is_named_and_the_whole_batches_stay(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    batch = 8 + BATCH * 128 * 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * batch, before[1]))  # within the last one
    try:
        with pytest.raises(UserError, match=r"unfinished: File too large; free some space there"):
            work(run, out).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    seen: list[int] = []
    work(run, out).run(seen.append)
    assert seen[0] == 40


def test_features_never_stand_beside_the_names_of_others(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    work(run, out).run()
    (tmp_path / "f.json").unlink()
    with pytest.raises(UserError, match=r"expected the images' names in f\.json beside it"):
        read_features(out)
    work(run, out, overwrite=True).run()
    beside = json.loads((tmp_path / "f.json").read_text())
    (tmp_path / "f.json").write_text(json.dumps(beside | {"name": beside["name"][1:]}))
    with pytest.raises(UserError, match="it names 47 of 48 images"):
        read_features(out)
    (tmp_path / "f.json").write_text(json.dumps(beside | {"name": [None, *beside["name"][1:]]}))
    with pytest.raises(UserError, match=r"f\.npy, name"):
        read_features(out)
    np.save(out, np.zeros((3, 128), np.float32))
    with pytest.raises(UserError, match=r"it holds float32 \(3, 128\)"):
        read_features(out)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"name": ["a"], "features": [[1.0]]}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(UserError, match="holds no features of rankgap: write it with rankgap embed"):
        read_features(tmp_path / "f.parquet")
    photo(8, 8, 0).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"unknown suffix of a features file '\.png'"):
        read_features(tmp_path / "a.png")


def test_a_file_beside_it_is_not_replaced_unasked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("mine")
    with pytest.raises(UserError, match=r"f\.json exists: choose another --out, or replace it with --overwrite"):
        work(run, tmp_path / "f.npy")
    assert (tmp_path / "f.json").read_text() == "mine"
