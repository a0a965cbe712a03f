"""The command line: its parser and its exit codes."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import inspect
import os
import sys
import traceback
import types
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rankgap
from rankgap.commands import COMMANDS, POSITIONAL
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError, missing, unknown, unusable

if TYPE_CHECKING:  # the core comes without it
    from jsonargparse import ArgumentParser

EXIT_USER, EXIT_NON_FINITE = 2, 3  # EXIT_PROBLEMS is 1
EXIT_INTERRUPTED = 130  # a run that another signal ends: 128 + its number
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader of our output closed it, as `head` does


# Headings of `rankgap train --help`, by the first configuration field under each.
_HEADINGS = {
    "method": "the design",
    "data": "the images",
    "backbone": "training",
    "rank_every": "measuring",
    "seed": "the machine",
    "out": "the run folder",
}


def _typed(command: str, flags: dict[str, Any]) -> dict[str, Any]:
    """A command's flags, read as the types of the parameters they fill."""
    from rankgap.run.flags import flag, parameters, plain_value
    from rankgap.run.reader import read

    from_file: dict[str, Any] = {}
    if "config" in flags:
        from rankgap.run.config import read_config_file

        from_file = read_config_file(flags.pop("config"))
    kinds = parameters(_filled(command))
    return from_file | {
        name: read(kinds[name][0], plain_value(name, kinds[name][0], given), flag(name))
        for name, given in flags.items()
    }


def _filled(command: str) -> Callable[..., Any]:
    """The function or class whose parameters are a command's flags."""
    if command == "train":
        from rankgap.run.config import TrainConfig

        return TrainConfig
    return COMMANDS[command]


# The commands that need the user's gains and maps, besides `train`, whose configuration has the flag.
_IMPORTING = ("design", "evaluate", "score", "report", "export", "embed")
_COMPLETION = "--print-completion"
_WITHOUT_COMMAND = ("--help", "--version", _COMPLETION)
_IMPORT = "a Python module or file (mine.py) to import first, so that its gains and maps can be named."


def _command(given: Sequence[str]) -> str:
    """The name of the command, or an empty string without one."""
    return next((word for word in given if not word.startswith("-")), "")


def _check_names(given: Sequence[str]) -> None:
    """Reject an unknown command or flag and suggest the nearest name, which the parser does not do."""
    if given and given[0].partition("=")[0] == _COMPLETION:  # its value is no command
        return
    if not (command := _command(given)):
        for word in given:
            if word.startswith("--") and word not in _WITHOUT_COMMAND:
                raise unknown("flag", word, _WITHOUT_COMMAND)
    elif command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    elif any(word.startswith("--") for word in given):
        from rankgap.run.flags import check_names

        more = ["--config"] if command == "train" else ["--import"] if command in _IMPORTING else []
        check_names(given, command, _filled(command), *more)


def command_parser(
    name: str, *, whole: bool = True, offered: Mapping[str, Sequence[str]] = types.MappingProxyType({})
) -> ArgumentParser:
    """The parser of one command; without its flags if it is not whole, since those of `train` load torch."""
    from jsonargparse import ArgumentParser

    command = COMMANDS[name]
    summary = (inspect.getdoc(command) or "").partition("\n")[0]
    parser = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
    if not whole:
        return parser
    from rankgap.run.flags import add_flags

    if name == "train":
        parser.add_argument(
            "--config", type=str, default=SUPPRESS, help="a YAML file that sets any of these flags"
        ).complete = "file"
        add_flags(parser, _filled(name), headings=_HEADINGS, offered=offered)
    else:
        add_flags(parser, command, POSITIONAL.get(name, ()), offered=offered)
    if name in _IMPORTING:
        parser.add_argument(
            "--import", dest="imports", action="append", default=SUPPRESS, metavar="TEXT", help=_IMPORT
        ).complete = "file"
    return parser


def _parser(
    given: Sequence[str], offered: Mapping[str, Sequence[str]] = types.MappingProxyType({})
) -> ArgumentParser:
    """All commands, with flags only for those that are named: listing the commands must not load torch."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="rankgap",
        description=rankgap.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        version=importlib.metadata.version("rankgap"),
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        _COMPLETION,
        action=_PrintCompletion,
        default=SUPPRESS,
        metavar="SHELL",
        help="print a script that completes commands and flags in a shell: bash, zsh, fish",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name in COMMANDS:
        sub = command_parser(name, whole=name in given, offered=offered)
        commands.add_subcommand(name, sub, help=sub.description)
    return parser


class _PrintCompletion(Action):
    """Prints a shell's script that completes commands, flags and their choices, and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        import shtab

        if values not in shtab.SUPPORTED_SHELLS:
            raise unknown("shell", values, shtab.SUPPORTED_SHELLS)
        print(shtab.complete(_parser([*COMMANDS], {"method": [*rankgap.METHODS]}), values))
        parser.exit()


def _fail(message: str, code: int) -> int:
    print(f"rankgap: {' '.join(line.strip() for line in message.splitlines())}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0 for success, 1 if `inspect` finds that training would stop, 2 for an error that the user
        can fix (such as a file that cannot be written), 3 for non-finite numbers, and 128 + the signal for an
        interrupted run (130 for Ctrl-C, 143 for SIGTERM, 141 if the reader of the output closed it).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        try:
            if given == ["--version"]:  # which the core answers without the library that parses
                print(f"rankgap {importlib.metadata.version('rankgap')}")
                return 0
            _check_names(given)
            parsed = _parser(given).parse_args(given or ["--help"])
            name = parsed.subcommand
            flags = parsed[name].as_dict()
            asked = flags.pop("imports", ()) if name in _IMPORTING else ()
            values = _typed(name, flags)
            if imports := asked or values.get("imports", ()):
                from rankgap.run.imports import import_all

                import_all(imports)
            return COMMANDS[name](**values) or 0
        finally:
            sys.stdout.flush()
    except ArgumentError as error:
        command = _command(given)
        said = str(error).replace(f" {command}.", " ")  # the parser names an argument compare.runs
        return _fail(f"{said}; see {f'rankgap {command}'.rstrip()} --help", EXIT_USER)
    except ModuleNotFoundError as error:
        if (lacking := missing(error.name, f"rankgap {_command(given)}".rstrip())) is None:
            raise
        return _fail(lacking, EXIT_USER)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich exits the program itself
            return EXIT_PIPE
        raise
    except (UserError, NonFiniteError, InterruptedRunError, OSError) as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError):
            return _refused(error)
        if isinstance(error, InterruptedRunError):
            return _fail(str(error), 128 + error.signal)
        return _fail(str(error), EXIT_NON_FINITE if isinstance(error, NonFiniteError) else EXIT_USER)


def _refused(error: OSError) -> int:
    """Report an error of the system on a file, and return the exit code. Our own output has no file name."""
    if error.filename is None:  # discard the remaining output: Python would fail on it again at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return EXIT_PIPE
    return _fail(str(unusable(error)), EXIT_USER)


def program() -> None:
    """The shell command: run `main` and exit with its code."""
    code = main()
    gc.freeze()  # saves a second-long search at exit for cycles among torch's and Lightning's objects
    sys.exit(code)


if __name__ == "__main__":
    program()
