from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankgap.errors import UserError
from rankgap.run.reader import parse_yaml, plain, read, read_text, write_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    lr: float
    name: Literal["sgd", "adamw"] = "sgd"
    steps: int | None = None
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise UserError("lr is at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    title: str
    inner: Inner
    widths: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    more: tuple[Inner, ...] = ()
    free: Mapping[str, Any] | None = None


WHOLE: dict[str, Any] = {"title": "a", "inner": {"lr": 1}}


def test_plain_values_are_read_as_their_types_and_turned_back() -> None:
    values = WHOLE | {
        "widths": [3, 4],
        "pair": [1, 2.5],
        "more": [{"lr": 0.1, "steps": 7}],
        "free": {"x": [1, {}]},
    }
    found = read(Outer, values, "file")
    assert found.inner == Inner(lr=1.0)
    assert (found.widths, found.pair, found.more) == ((3, 4), (1.0, 2.5), (Inner(lr=0.1, steps=7),))
    assert read(Outer, plain(found), "file") == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inner": {"lr": "1"}}, "file.inner.lr takes a number, got '1'"),
        ({"inner": {"lr": True}}, "file.inner.lr takes a number, got True"),
        ({"inner": {"lr": 1, "steps": 1.5}}, "file.inner.steps takes a whole number, got 1.5"),
        ({"inner": {"lr": 1, "nesterov": 1}}, "file.inner.nesterov takes true or false, got 1"),
        ({"inner": {"lr": 1, "name": "adam"}}, "unknown file.inner.name 'adam': did you mean 'adamw'"),
        ({"inner": {"lr": -1}}, "file.inner: lr is at least 0"),
        ({"inner": {}}, "file.inner lacks lr"),
        ({"inner": None}, "file.inner takes keys and values, got None"),
        ({"inner": {"lr": 1, "stepz": 3}}, "unknown key of file.inner 'stepz': did you mean 'steps'"),
        ({"more": [{"lr": 1}, {"rate": 1}]}, "unknown key of file.more.1 'rate'"),
        ({"title": 3}, "file.title takes text, got 3"),
        ({"widths": [1, "2"]}, "file.widths.1 takes a whole number, got '2'"),
        ({"widths": 3}, "file.widths takes a list, got 3"),
        ({"pair": [1]}, "file.pair takes 2 values, got [1]"),
        ({"pair": [1, 2, 3]}, "file.pair takes 2 values, got [1, 2, 3]"),
        ({"free": 3}, "file.free takes keys and values, got 3"),
        ({"title": {1, 2}}, "file may only hold text, numbers, lists, and keys and values"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_was_expected(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        read(Outer, WHOLE | change, "file")
    assert says in str(error.value)


def test_yaml_is_read_as_people_expect() -> None:
    text = (
        'n: 010\no: 08\na: 1e-3\nb: 2024-01-01\nc: 1.0e-6\nd: .5\ne: 10\nf: -3.\ng: 1e3\nh: 1.2.3\ni: .inf\nj: "1"'
    )
    found = parse_yaml(text, "here")
    assert found == {
        "n": 10,
        "o": 8,
        "a": 1e-3,
        "b": "2024-01-01",
        "c": 1e-6,
        "d": 0.5,
        "e": 10,
        "f": -3.0,
        "g": 1000.0,
        "h": "1.2.3",
        "i": float("inf"),
        "j": "1",
    }
    assert type(found["e"]) is int
    for text in (
        "a: [",
        "\t- x: 1",
        "a: !!python/object:os.system x",
        "a: !!bool x",
        "!!int ''",
        "a: !!timestamp x",
    ):
        with pytest.raises(UserError, match="here is not YAML"):
            parse_yaml(text, "here")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    for path, says in ((tmp_path / "x", "is not UTF-8 text"), (tmp_path / "y", "y: No such file")):
        with pytest.raises(UserError, match=says):
            read_text(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
near = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("title", "inner", "widths", "pair", "more", "free", "wdths"), anything)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(anything | near)
def test_any_values_are_read_or_raise_a_user_error(values: object) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(read(Outer, values, "file"), Outer)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_is_yaml_or_raises_a_user_error(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_yaml(text, "here")


def test_text_that_is_not_utf_8_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match="--data is not UTF-8 text; rename the folder, or make a link"):
        read(str, "folder:caf\udce9", "--data")


@given(
    st.sampled_from(
        ["84071e7", "1e5", "010", "0o7", "1_000", "2020-01-01", "no", "null", "~", ".inf", "+1", "1:30"]
    )
    | st.from_regex(r"[0-9]+e[0-9]+", fullmatch=True)
    | st.floats(allow_nan=False)
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
)
def test_what_is_written_is_read_back(value: Any) -> None:
    """A commit such as 84071e7 was once read as a number, and its run could not be opened."""
    assert parse_yaml(write_yaml({"key": [value]}), "a file") == {"key": [value]}
