"""Command-line flags, made from types and docstrings, and their texts as plain values."""

from __future__ import annotations

import inspect
import types
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import docstring_parser
from jsonargparse import ArgumentParser

from rankgap.errors import UserError, unknown
from rankgap.run.reader import parse_yaml, present

# What a shell completes a parameter with, in the words of the library that writes its script (shtab).
_PATHS = {"run": "directory", "runs": "directory", "out": "file", "broken": "file", "imports": "file"}


class Offered(tuple[str, ...]):
    """Values that a shell offers for a flag. The parser lets any other pass: the strict reader checks them."""

    def __contains__(self, value: object) -> bool:
        return True


def add_flags(
    parser: ArgumentParser,
    target: Callable[..., Any],
    positional: Sequence[str] = (),
    headings: Mapping[str, str] = types.MappingProxyType({}),
    offered: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> None:
    """Add one flag for each parameter of a function or field of a dataclass; its help comes from the docstring.

    Flags that are not given stay out of the result, so that one given with its default value still counts.

    Args:
        parser: gets the flags.
        target: the function or dataclass.
        positional: the parameters that are no flags.
        headings: of groups of flags in the help, by the first parameter under each.
        offered: what a shell offers for a parameter, besides the words of its type.
    """
    docs = {p.arg_name: p.description for p in docstring_parser.parse(inspect.getdoc(target) or "").params}
    place: Any = parser
    for name, (kind, default) in parameters(target).items():
        if name in headings:
            place = parser.add_argument_group(headings[name])
        options: dict[str, Any] = {"help": (docs[name] or "") + _said_of(default)}
        if kind is bool:
            options["action"] = "store_true"
        elif typing.get_origin(kind) is list or _is_mapping(kind):
            options["nargs"] = "+"
        if words := _choices(kind) or offered.get(name):
            options["choices"] = Offered(words)
        if name in positional:
            action = place.add_argument(name, **options)
        else:
            if kind is not bool:
                options["metavar"] = _metavar(kind)
            if typing.get_origin(kind) is tuple:
                options["action"] = "append"
            action = place.add_argument(flag(name), dest=name, default=SUPPRESS, **options)
        if name in _PATHS:
            action.complete = _PATHS[name]


def _said_of(default: Any) -> str:
    """The end of a flag's help: its default, if that is worth showing."""
    shown = ",".join(default) if isinstance(default, tuple) else default
    is_worth_it = isinstance(shown, str | int | float) and not isinstance(shown, bool) and shown != ""
    return f" (default: {shown})" if is_worth_it else ""


def _metavar(kind: Any) -> str:
    """The placeholder for a flag's value in the help."""
    kind = present(kind)
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    if typing.get_origin(kind) is tuple:
        return "A,B" if _is_of_choices(kind) else "TEXT"
    if _is_mapping(kind):
        return "NAME=TEXT" if typing.get_args(kind)[1] is str else "KEY=VALUE"
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _choices(kind: Any) -> tuple[str, ...]:
    """The words that a parameter takes, if it takes a few."""
    inner = present(kind)
    if typing.get_origin(inner) is tuple:
        inner = typing.get_args(inner)[0]
    return tuple(map(str, typing.get_args(inner))) if typing.get_origin(inner) is Literal else ()


def _is_of_choices(kind: Any) -> bool:
    """Whether a tuple's items are choices from a known list."""
    return typing.get_origin(typing.get_args(kind)[0]) is Literal


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(present(kind))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The parameters of a function, or fields of a dataclass: name -> (type, default)."""
    hints = typing.get_type_hints(target)
    return {name: (hints[name], p.default) for name, p in inspect.signature(target).parameters.items()}


def flag(name: str) -> str:
    """A parameter's flag on the command line; a flag that is repeated for each item is in the singular."""
    return "--import" if name == "imports" else "--" + name.replace("_", "-")


def check_names(given: Sequence[str], command: str, target: Callable[..., Any], *more: str) -> None:
    """Reject flags that a command does not have, and suggest the nearest one.

    Args:
        given: the command line.
        command: the command's name.
        target: what the flags fill, as in `add_flags`.
        more: its other flags.

    Raises:
        UserError: an unknown flag.
    """
    known = {*map(flag, parameters(target)), *more, "--help", "--version"}
    for word in given:
        if word.startswith("--") and word != "--" and (name := word.partition("=")[0]) not in known:
            raise unknown("flag", name, known, listed=f"rankgap {command} --help")


def plain_list(kind: Any, given: Any) -> Any:
    """A list as a plain value: "a,b" and ["a", "b"] are the same, and none is an empty list.

    Choices are joined by commas; other text, such as a file name, may contain commas. Other values are unchanged.
    """
    if typing.get_origin(present(kind)) is not tuple:
        return given
    items = given if isinstance(given, list) else [given]
    if not all(isinstance(item, str) for item in items):
        return given
    if _is_of_choices(present(kind)):
        items = [part.strip() for item in items for part in item.split(",")]
    return [item for item in items if item not in ("", "none")]


def plain_value(name: str, kind: Any, given: Any) -> Any:
    """A flag's text as a plain value, as in YAML: 3 is a number, a,b a list, and KEY=VALUE ... keys and values.

    auto stands for an optional number that is left out.
    """
    inner = present(kind)
    if inner in (int, float):
        return None if given == "auto" and inner is not kind else parse_yaml(given, flag(name))
    if typing.get_origin(inner) is tuple:
        return plain_list(inner, given)
    if not _is_mapping(kind):
        return given
    values: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise UserError(f"{flag(name)} takes {_metavar(kind)}, got {item!r}")
        if key in values:
            raise UserError(f"{flag(name)} {item}: {key} is given twice")
        values[key] = value if typing.get_args(kind)[1] is str else parse_yaml(value, f"{flag(name)} {item!r}")
    return values
