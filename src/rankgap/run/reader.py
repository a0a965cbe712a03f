"""The one reader of flags and files: plain values, as YAML gives them, become typed dataclasses.

It is strict. A value of the wrong type, an unknown key or a missing one is an error that names its place, what was
expected, what came, and the nearest existing key. pydantic does the checking in its strict JSON mode: a list may
stand for a tuple and a whole number for a number, and nothing else is converted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from rankgap.errors import UserError, unknown, unusable

T = TypeVar("T")

_EXPECTED = {  # by pydantic's error type
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "dataclass_type": "keys and values",
    "dataclass_exact_type": "keys and values",
}


# Bounds of a YAML text. Reading takes time that grows with the square of the depth of its brackets.
_CHARACTERS, _BRACKETS, _VALUES = 2**20, 1_000, 100_000
_BYTES = 2**31  # of any file that is read as text


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, 010 is ten, and a date is text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._sizes: dict[int, int] = {}  # node -> values in it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count the values, including those behind each alias: a few lines of aliases can stand for billions."""
        before, alias = self._values, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise yaml.YAMLError("a value contains itself")
        self._values += self._sizes[id(node)] if alias else 1
        if self._values > _VALUES:
            raise yaml.YAMLError(f"it has more than {_VALUES:,} values")
        self._sizes[id(node)] = self._values - before
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    value = int(loader.construct_scalar(node))
    # No field takes a number beyond the range of floats.
    return value if abs(value) < 10**100 else math.copysign(math.inf, value)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", loader.construct_scalar(node).lower()))


# Plain values only: other tags lead to many kinds of objects and exceptions.
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.endswith((":null", ":bool", ":str", ":seq", ":map"))
}
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


class _Dumper(yaml.SafeDumper):
    """Quotes what either reader of YAML would take for something else, such as the text 84071e7."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def write_yaml(values: Any) -> str:
    """Plain values as YAML, which `parse_yaml` turns back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text.

    Args:
        text: the text.
        where: its name in an error.

    Raises:
        UserError: the text is not YAML.
    """
    if len(text) > _CHARACTERS:
        raise UserError(f"{where} is too long: expected at most {_CHARACTERS:,} characters of YAML")
    if text.count("[") + text.count("{") > _BRACKETS:
        raise UserError(f"{where} is not YAML of ours: it has more than {_BRACKETS:,} brackets")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError, KeyError, RecursionError) as error:
        # Besides YAML errors: an explicit tag on a wrong value, such as !!int x.
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _BYTES:
            raise UserError(f"{path} is larger than {_BYTES / 2**30:g} GiB, so it is not a file of a run")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unusable(error, path) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """The plain values of a JSON file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read(kind: type[T], values: object, where: str) -> T:
    """Read plain values as a dataclass, or as any other type.

    Args:
        kind: the type.
        values: the values as YAML gives them.
        where: their place, as an error names it; empty if the key alone is enough.

    Raises:
        UserError: the values do not fit; the message names the place, what was expected and what came.
    """
    result: T = _read(kind, values, lambda path: ".".join([part for part in (where, *path) if part]))
    return result


def read_over(default: T, values: object, where: str) -> T:
    """Read plain values as a dataclass, and take missing fields from another instance.

    Args:
        default: the other instance.
        values: the values as YAML gives them.
        where: their place, as an error names it.

    Raises:
        UserError: as `read`.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} takes keys and values, got {_shown(values)}")
    return read(type(default), plain(default) | dict(values), where)


def plain(value: Any) -> Any:
    """A dataclass as plain values, ready for YAML and JSON; `read` turns them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    return typing.get_type_hints(kind)


def _read(kind: Any, values: object, place: Callable[[Sequence[str]], str]) -> Any:
    try:
        text = json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # the bytes of a file name, which the files of a run cannot hold
        raise UserError(
            f"{place(())} is not UTF-8 text; rename the folder, or make a link to it that has a name in UTF-8"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:  # such as a set, or a value that contains itself
        raise UserError(f"{place(())} may only hold text, numbers, lists, and keys and values: {error}") from None
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(_message(kind, error.errors(include_url=False), place)) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    for found in _dataclasses(kind):
        # pydantic asks the class itself whether unknown keys are allowed.
        found.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    return TypeAdapter(kind)


def _dataclasses(kind: Any) -> Iterator[Any]:
    """The dataclasses in a type: itself and those of its fields."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in type_hints(typing.cast(type, kind)).values():
            yield from _dataclasses(hint)
    for part in typing.get_args(kind):
        yield from _dataclasses(part)


def _at(kind: Any, path: Sequence[str | int]) -> Any:
    """The type at a path inside another type."""
    for part in path:
        kind = present(kind)
        if dataclasses.is_dataclass(kind) or is_typeddict(kind):
            kind = type_hints(typing.cast(type, kind))[str(part)]
        else:  # a list or a mapping: its last argument is the type of its items
            kind = next(hint for hint in reversed(typing.get_args(kind)) if hint is not Ellipsis)
    return present(kind)


def present(kind: Any) -> Any:
    """An optional type without its None."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _message(kind: Any, errors: Sequence[ErrorDetails], place: Callable[[Sequence[str]], str]) -> str:
    # An unknown key is more informative than the missing one that it was meant to be.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    path = [str(part) for part in first["loc"]]
    here = place(path)
    match first["type"]:
        case "unexpected_keyword_argument":
            keys = type_hints(_at(kind, first["loc"][:-1]))
            return str(unknown(f"key of {place(path[:-1])}", path[-1], keys))
        case "missing" if path and path[-1].isdigit():
            wanted = len(typing.get_args(_at(kind, first["loc"][:-1])))
            return f"{place(path[:-1])} takes {wanted} values, got {_shown(first['input'])}"
        case "missing" | "missing_argument":
            lacking = [
                str(e["loc"][-1])
                for e in errors
                if e["type"] == first["type"] and e["loc"][:-1] == first["loc"][:-1]
            ]
            return f"{place(path[:-1])} lacks {', '.join(lacking)}"
        case "literal_error":
            choices = [str(choice) for choice in typing.get_args(_at(kind, first["loc"]))]
            if path and path[-1].isdigit():  # an item of a list; a flag or a file may also give the list as "none"
                here, choices = place(path[:-1]), [*choices, "none"]
            return str(unknown(here, str(first["input"]), choices))
        case "value_error" if isinstance(error := first["ctx"]["error"], UserError):
            return f"{here}: {error}" if here else str(error)
        case "too_long" | "too_short":
            wanted = len(typing.get_args(_at(kind, first["loc"])))
            return f"{here} takes {wanted} values, got {_shown(first['input'])}"
        case other:
            expected = _EXPECTED.get(other, first["msg"])
            return f"{here} takes {expected}, got {_shown(first['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
