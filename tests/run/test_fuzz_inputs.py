"""Any text for YAML, a setting, a gain, data or a spectrum works, or raises an error of `rankgap.errors`.

`RANKGAP_FUZZ=1000` tries a thousand inputs of each kind in place of a few dozen.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankgap.data import load_data
from rankgap.errors import NonFiniteError, UserError
from rankgap.filters.gains import GAINS, parse_gain
from rankgap.filters.spectral import SpectralFilter
from rankgap.model.maps import find_map
from rankgap.run.build import build
from rankgap.run.reader import parse_yaml, read, read_over
from rankgap.run.recipes import Recipe, load_recipe, override
from rankgap.run.saved import SavedRun
from rankgap.theory.design import assess
from rankgap.theory.reference import reference_spectrum

EXAMPLES = int(os.environ.get("RANKGAP_FUZZ", "40"))
fuzzed = settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
hostile = values | st.sampled_from([10**30, -(10**400), 1e308, 1e-308, 2**40, [[[[]]]], [1] * 1000, "x" * 1000])
pieces = [
    *(
        "- ",
        ": ",
        "? ",
        "&a ",
        "*a",
        "<<: *a",
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!binary ",
        "!!timestamp ",
        "!!set ",
    ),
    *(
        "!!python/object:os.system ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "|",
        ">",
        "\n",
        "  ",
        "\t",
        "#",
        "%YAML 9.9\n",
        "---\n",
    ),
    *(
        "...\n",
        "'",
        '"',
        "\\x41",
        "\0",
        "\ud800",
        "é",
        "1e3",
        "010",
        "0x1f",
        "1:2:3",
        ".inf",
        ".nan",
        "2001-01-01",
    ),
]
yamls = st.lists(st.sampled_from(pieces) | st.text(max_size=6), max_size=40).map("".join)


def keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found += [f"{prefix}{key}", *(keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return found


RECIPE = (Path(__file__).parents[2] / "src/rankgap/run/recipes/cifar/swav.yaml").read_text()
KEYS = [
    *keys(parse_yaml(RECIPE, "recipe")),
    "target.sinkhorn.queue",
    "target.sinkhorn.iterations",
    "views.0.scale",
]
gains = st.lists(
    st.sampled_from(
        [*"s0123456789.+-*/(), ", "**", "log", "log1p", "exp(", "sqrt(", "tanh(", "min(", "max(", "1e"]
    )
    | st.sampled_from(
        [*GAINS, "power:", "identity", "predictor", ":", "^", "lambda", "__import__", "\0", "\n", "é"]
    ),
    max_size=12,
).map("".join) | st.text(max_size=40)


@fuzzed
@given(text=yamls)
def test_any_yaml(text: str) -> None:
    with contextlib.suppress(UserError):
        found = parse_yaml(text, "a file")
        for kind in (Recipe, SavedRun, int, dict[str, float]):
            with contextlib.suppress(UserError):
                read(kind, found, "a file")


@fuzzed
@given(start=st.integers(0, len(RECIPE)), piece=yamls, skip=st.integers(0, 20))
def test_any_yaml_inside_a_recipe(start: int, piece: str, skip: int) -> None:
    with contextlib.suppress(UserError):
        read(Recipe, parse_yaml(RECIPE[:start] + piece + RECIPE[start + skip :], "a recipe"), "a recipe")


@fuzzed
@given(
    key=st.sampled_from(KEYS) | st.text(max_size=20),
    value=hostile,
    method=st.sampled_from(["swav", "byol", "dino"]),
)
def test_any_setting(key: str, value: Any, method: str) -> None:
    with contextlib.suppress(UserError):
        heads = override(load_recipe("cifar", method), {key: value})
        build(method, backbone="resnet_tiny", heads=heads)


@fuzzed
@given(value=hostile)
def test_any_value_in_place_of_options(value: Any) -> None:
    with contextlib.suppress(UserError):
        read_over(load_recipe("cifar", "dino"), value, "options")


@fuzzed
@given(text=gains)
def test_any_gain(text: str) -> None:
    for side in ("online", "target"):
        with contextlib.suppress(UserError):
            find_map(text, side)
    with contextlib.suppress(UserError, NonFiniteError):
        parse_gain(text)
        SpectralFilter(text, branch="online")(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))


@fuzzed
@given(
    text=st.lists(
        st.floats().map(str)
        | st.sampled_from([",", " ", "\n", "[", "]", "0", "1e-400", "1e400", "1_0", "nan", "٣", "\0"]),
        max_size=30,
    ).map("".join)
    | st.text(max_size=300),
    gain=st.sampled_from(
        ["power:0.5", "power:-1", "log", "auto", "power:100", "power:-100", "1", "s/(s+0.1)", "s**9"]
    ),
)
def test_any_spectrum(text: str, gain: str) -> None:
    with contextlib.suppress(UserError):
        found = assess(gain, None, reference_spectrum(text))
        assert found.warnings() is not None
        assert found.ranges
        assert found.rate is not None
        assert found.names


def test_a_spectrum_s_file_may_hold_anything(tmp_path: Path) -> None:
    file = tmp_path / "spectrum"
    for content in (b"\xff\xfe", b"", b"4,3\0", b"1\n" * 10**5, b"1 " * 10**7):
        file.write_bytes(content)
        with pytest.raises(UserError, match="--spectrum"):
            reference_spectrum(str(file))
    for name in ("n" * 5000, "/dev/zero", str(tmp_path), "\ud800"):
        with pytest.raises(UserError, match="--spectrum"):
            reference_spectrum(name)


@fuzzed
@given(
    text=st.text(max_size=30)
    | st.builds("{}:{}".format, st.sampled_from(["folder", "digits", "npy", "wds", "hf:/"]), st.text(max_size=300))
)
def test_any_data_set(text: str) -> None:
    with contextlib.suppress(UserError):
        load_data(text, size=8)


LEVELS = list(zip("abcdefgh", "bcdefghi", strict=True))  # each level names the one above nine times
LAUGHS = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in LEVELS)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in LEVELS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(LAUGHS, "more than 100,000 values", id="laughs"),
        pytest.param(MERGES, "more than 100,000 values", id="merges"),
        ("a: &a [*a]", "contains itself"),
        pytest.param("- " * 10_000 + "1", "is not YAML", id="deep list"),
        pytest.param("".join(" " * i + "a:\n" for i in range(1_000)), "is not YAML", id="deep mapping"),
        pytest.param("a" * 2**21, "at most 1,048,576 characters", id="long"),
        ("!!timestamp 2001-99-99", "is not YAML"),
        ("!!float 1:1:1", "is not YAML"),
        ("!!bool maybe", "is not YAML"),
        ("!!set {a}", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_yaml_that_would_not_end_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        parse_yaml(text, "a file")


def test_aliases_and_merges_serve_as_people_use_them() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n"
    assert parse_yaml(text, "a file") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}
