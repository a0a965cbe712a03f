from __future__ import annotations

import copy
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rankgap
from rankgap.errors import UserError
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.folder import RunFolder
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from tests.small_run import four_steps

EXAMPLES = int(os.environ.get("RANKGAP_FUZZ", "40"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps whose files end at step 4, and its checkpoint of step 2."""
    out = tmp_path_factory.mktemp("checkpoint") / "run"
    train(four_steps(out, keep_every=1, protocol=()))
    shutil.copyfile(out / "checkpoints" / "epoch-0001.ckpt", out / "checkpoints" / "last.ckpt")
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def at(*path: Any) -> Callable[[dict[str, Any]], tuple[Any, Any]]:
    def place(state: dict[str, Any]) -> tuple[Any, Any]:
        found: Any = state
        for key in path[:-1]:
            found = found[key]
        return found, path[-1]

    return place


WEIGHT = "online.projector.module.0.weight"
KEPT = ("optimizer", "state", 0, "momentum_buffer")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("step",), -1, "step must be from 0"),
        (("step",), "2", "step should be of type int"),
        (("step",), 10**9, "beyond the run's 4 steps"),
        (("step",), True, "step should be of type int"),
        (("seconds",), float("nan"), "seconds must be from"),
        (("seconds",), 0.0, "seconds must be from"),
        (("best",), None, "best should be of type float"),
        (("model",), [], "model should be of type dict"),
        (("model", WEIGHT), torch.zeros(3), "expected float32"),
        (("model", WEIGHT), "weights", "not a plain tensor"),
        (("model", WEIGHT), torch.zeros(1).expand(10**7, 10**6), "expected float32"),
        (("model", WEIGHT), torch.full((256, 128), float("nan")), "not finite"),
        (("model", WEIGHT), torch.zeros(256, 128, dtype=torch.float64), "float64 (256, 128), expected float32"),
        (("model", WEIGHT), torch.zeros(256, 128).to_sparse(), "not a plain tensor"),
        (("model", "more"), torch.zeros(1), "more: not in the model"),
        (("optimizer",), {}, "should hold a state for each parameter"),
        (("optimizer", "state"), {}, "no optimizer state"),
        (("optimizer", "state", 999), {"momentum_buffer": torch.zeros(1)}, "different optimizer"),
        (("optimizer", "state", 0), {"exp_avg": torch.zeros(1)}, "different optimizer"),
        (KEPT, torch.zeros(7), "momentum_buffer of the optimizer's parameter 0"),
        (KEPT, None, "not a plain tensor"),
        (("random", "cpu"), torch.zeros(8, dtype=torch.uint8), "random does not hold the states"),
        (("random", "cuda"), [torch.zeros(2)], "random does not hold the states"),
        (("random",), {}, "random does not hold the states"),
    ],
)
def test_a_spoilt_checkpoint_is_named_before_a_file_has_changed(
    place: tuple[Any, ...], value: object, says: str, run: Path
) -> None:
    file = run / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    where, key = at(*place)(state)
    where[key] = value
    torch.save(state, file)
    before = contents(run)
    with pytest.raises(UserError) as raised:
        train(resumed(run, {}))
    assert says in str(raised.value)
    assert str(file) in str(raised.value)
    assert contents(run) == before


@pytest.mark.parametrize("key", ["rankgap", "step", "seconds", "best", "model", "optimizer", "random"])
def test_a_checkpoint_without_a_part_is_refused(key: str, run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    del state[key]
    torch.save(state, file)
    with pytest.raises(UserError, match="is not a rankgap checkpoint: it should hold"):
        rankgap.load_encoder(run)


def test_a_bit_that_flipped_in_the_weights_is_found(run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        rankgap.load_encoder(run)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(run: Path) -> None:
    """An archive of a few kilobytes may stand for terabytes."""
    file = run / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run/data/0", bytes(10**7))
    with pytest.raises(UserError, match="larger than the file"):
        rankgap.load_encoder(run)


def archive_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), inside=st.booleans())
def test_any_spoilt_file_is_our_error(seed: int, inside: bool, whole: Path, tmp_path: Path) -> None:
    """A file torn or overwritten; or, with checksums that are right, a pickle that was."""
    source, file = whole / "checkpoints" / "last.ckpt", tmp_path / "spoilt.ckpt"
    rng = random.Random(seed)
    if inside:
        parts = archive_of(source)
        name = next(name for name in parts if name.endswith("data.pkl"))
        parts[name] = overwritten(parts[name], rng)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    else:
        file.write_bytes(overwritten(source.read_bytes(), rng))
    try:
        found = Checkpoint.read(file)
    except UserError as error:
        named = str(file) in str(error)
    else:
        named = found.step >= 0
    assert named


def overwritten(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(rng.choice([1, 3, 50])) + content[start + rng.choice([0, 1, 3]) :]


@pytest.mark.parametrize("tail", ["", "9,0.9,0.5", "2,0.5,0.4,0.1,,", "9,9\n"])
def test_a_resumed_run_drops_what_was_read_after_its_checkpoint_first(tail: str, run: Path, whole: Path) -> None:
    """After a kill: readings beyond the checkpoint, and a half-written row or line."""
    for name, torn in (("metrics.csv", tail), ("spectra.jsonl", '{"spectrum_onl' if tail else "")):
        with (run / name).open("a") as file:
            file.write(torn)
    if tail == "9,9\n":
        with pytest.raises(UserError, match="has the wrong number of values in line"):
            train(resumed(run, {}))
        return
    train(resumed(run, {}))
    for name in ("metrics.csv", "spectra.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("name", ["metrics.csv", "spectra.jsonl", "config.yaml"])
def test_a_run_with_a_spoilt_file_is_not_resumed_and_stays_as_it_was(name: str, run: Path) -> None:
    (run / name).write_text("step\n" + "spoilt\n" * 3)
    before = contents(run)
    with pytest.raises(UserError, match=name):
        train(resumed(run, {}))
    assert contents(run) == before


def test_an_optimizer_that_begins_afresh_in_a_part_of_a_group_still_trains(run: Path) -> None:
    """Fused SGD rejects a group in which only some parameters have a buffer."""
    file = run / "checkpoints" / "last.ckpt"
    state = copy.deepcopy(torch.load(file, weights_only=True))
    del state["optimizer"]["state"][0]
    torch.save(state, file)
    train(resumed(run, {}))
    assert RunFolder(run).load_checkpoint().step == 4


def test_what_is_read_is_what_was_written(whole: Path, tmp_path: Path) -> None:
    first = Checkpoint.read(whole / "checkpoints" / "last.ckpt")
    RunFolder(tmp_path).save_checkpoint(first, "best")
    for name in ("last", "best"):
        again = Checkpoint.read(tmp_path / "checkpoints" / f"{name}.ckpt")
        assert (again.step, again.seconds, again.best) == (first.step, first.seconds, first.best)
        for part in ("model", "optimizer", "random"):
            torch.testing.assert_close(getattr(again, part), getattr(first, part), rtol=0, atol=0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
