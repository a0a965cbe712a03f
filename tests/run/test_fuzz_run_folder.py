"""Reading a run folder with damaged files works or raises an error of `rankgap.errors`, and changes nothing.

`RANKGAP_FUZZ=1000` tries a thousand inputs of each kind in place of a dozen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import rankgap
from rankgap.errors import NonFiniteError, UserError
from rankgap.run.folder import RunFolder, labels
from rankgap.run.reference import spectrum_of_run
from rankgap.run.restored import restore
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from rankgap.show.live import live_view
from rankgap.show.report.page import report_page
from rankgap.show.terminal import results_table
from rankgap.theory.design import assess
from tests.small_run import four_steps

EXAMPLES = int(os.environ.get("RANKGAP_FUZZ", "12"))
fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    1e-320,
    10**12,
    10**40,
    -(10**400),
    0.5,
    1e300,
    "",
    "x",
    "x" * 5000,
    [],
    {},
]
HOSTILE += [float("nan"), float("inf"), [[]], {"a": 1}, [1] * 2000, "../..", "\x00", "auto", "byol", "digits"]
deep: Any = 1
for _ in range(300):
    deep = [deep]
HOSTILE.append(deep)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("fuzz") / "run"
    train(four_steps(out))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def spoil_tree(values: Any, rng: random.Random) -> Any:
    """Plain values with one of them replaced, deleted, doubled or renamed."""
    values = json.loads(json.dumps(values))
    path = rng.choice(list(places(values)))
    place = values
    for key in path[:-1]:
        place = place[key]
    match rng.randrange(5):
        case 0:
            del place[path[-1]]
        case 1 if isinstance(place, dict):
            place[f"{path[-1]}x"] = place.pop(path[-1])
        case _:
            place[path[-1]] = rng.choice(HOSTILE)
    return values


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """A file cut, overwritten or doubled somewhere."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 7, 100]))
    match rng.randrange(5):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + rng.randbytes(end - start) + content[end:]
        case 2:
            return content[:end] + content[start:]
        case 3:
            return (
                content[:start]
                + rng.choice([b"-", b"9" * 400, b"\n", b",", b"nan", b"[" * 3000, b"\0"])
                + content[end:]
            )
    return b""


def survives(*calls: Callable[[], object]) -> None:
    """Each call works or raises an error of `rankgap.errors`, of one line."""
    for call in calls:
        with contextlib.suppress(UserError, NonFiniteError):
            call()


def shown(found: object) -> None:
    Console(width=80, file=io.StringIO()).print(found)


def readers(path: Path) -> list[Callable[[], object]]:
    """What reads a run folder without training: the library, `watch`, `compare`, `report` and `design`."""
    folder = RunFolder(path)
    return [
        folder.saved,
        folder.results,
        lambda: folder.history(2),
        lambda: shown(live_view(folder, None)),
        lambda: shown(
            results_table(dict(zip(labels([folder]), [folder.results() or folder.last_reading()], strict=True)))
        ),
        lambda: report_page([folder]),
        lambda: assess("power:0.5", None, spectrum_of_run(folder)),
        lambda: rankgap.load_encoder(path),
        lambda: resumed(path, {}),
        lambda: restore(path),
    ]


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "metrics.csv", "spectra.jsonl"])
@fuzzed
@given(seed=st.integers(0, 2**32))
def test_spoilt_bytes_of_a_text_are_our_error(name: str, whole: Path, run: Path, seed: int) -> None:
    (run / name).write_bytes(spoil_bytes((whole / name).read_bytes(), random.Random(seed)))
    survives(*readers(run))


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "spectra.jsonl"])
@fuzzed
@given(seed=st.integers(0, 2**32))
def test_spoilt_values_are_our_error(name: str, whole: Path, run: Path, seed: int) -> None:
    rng, text = random.Random(seed), (whole / name).read_text()
    if name == "config.yaml":
        text = yaml.safe_dump(spoil_tree(yaml.safe_load(text), rng))
    elif name == "results.json":
        text = json.dumps(spoil_tree(json.loads(text), rng))
    else:
        first, *rest = text.splitlines()
        text = "\n".join([json.dumps(spoil_tree(json.loads(first), rng)), *rest]) + "\n"
    (run / name).write_text(text)
    survives(*readers(run))
