"""The commands. Flags come from the types and docstrings of the functions and dataclasses they fill."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import inspect
import os
import sys
import traceback
import types
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import rankgap
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError, unknown, unusable

if TYPE_CHECKING:  # listing the commands must not load torch
    from rankgap.evaluate.evaluation import Protocol
    from rankgap.spectra.pair import Side

EXIT_PROBLEMS, EXIT_USER, EXIT_NON_FINITE = 1, 2, 3
EXIT_INTERRUPTED = 130  # a run that another signal ends: 128 + its number
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader of our output has closed it, as `head` does


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
    """What a command's flags fill."""
    if command == "train":
        from rankgap.run.config import TrainConfig

        return TrainConfig
    return COMMANDS[command]


def demo(out: str = "runs/demo", seed: int = 0) -> None:
    """Train seven methods on scikit-learn's digits and show their rank differences (two minutes, no download).

    Args:
        out: folder for the runs and the picture; an earlier demo there is replaced.
        seed: seed of all runs.
    """
    from rankgap.demo import run_demo, story
    from rankgap.show.terminal import show_demo

    results, picture = run_demo(Path(out), seed)
    show_demo(results, picture, story(results))


def train(**given: Any) -> None:
    """Train and evaluate an encoder, and log the ranks of both branches."""
    from rankgap.data.names import shown
    from rankgap.run.config import TrainConfig
    from rankgap.run.processes import is_main_process
    from rankgap.run.resuming import resumed
    from rankgap.run.trainer import train as run
    from rankgap.show.progress import Progress
    from rankgap.show.terminal import show_results

    config = TrainConfig(**given)
    if config.resume:
        config = resumed(config.path, given)
    progress = Progress(config.title)
    results = run(config, callbacks=[progress], announce=progress.announce, other_data="data" in given)
    if is_main_process():
        show_results({config.title: results})
        print(f"run folder: {shown(str(config.path))}")


def evaluate(
    run: str,
    protocol: tuple[Protocol, ...] = ("knn", "linear"),
    branch: Side = "online",
    data: str | None = None,
    eval: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Evaluate a run's last checkpoint again, and update its results.json.

    Args:
        run: the run folder.
        protocol: knn, linear, linear_sgd, joined by commas; none for label-free ranks only.
        branch: the branch whose encoder is evaluated; the target's is the EMA teacher if the method has one.
        data: where the run's images are now, as in --data of `train`; by default where they were.
        eval: evaluation sets in addition to the data's own, as NAME=DATA; by default those of the run.
    """
    from rankgap.run.files import check_writable
    from rankgap.run.folder import RunFolder
    from rankgap.run.restored import evaluate_plan, restore
    from rankgap.show.terminal import show_results

    folder = RunFolder(Path(run))
    changes: dict[str, Any] = {name: value for name, value in (("data", data), ("eval", eval)) if value}
    before = folder.results()
    check_writable(folder.path)
    plan = restore(run, protocol=protocol, **changes)
    found = evaluate_plan(plan, branch=branch)
    folder.write_results(before | (found if branch == "online" else {"target_branch": found}))
    show_results({f"{plan.config.title} ({branch})": folder.results() | found})


def compare(runs: list[str]) -> None:
    """Show runs side by side.

    Args:
        runs: run folders.
    """
    from rankgap.run.folder import RunFolder, labels
    from rankgap.show.terminal import show_results

    folders = [RunFolder(Path(path)) for path in runs]
    found = [folder.results() or folder.last_reading() for folder in folders]
    show_results(dict(zip(labels(folders), found, strict=True)))


def score(
    run: str,
    images: int = 2048,
    repeats: int = 20,
    branch: Side = "online",
    data: str | None = None,
    all: bool = False,
) -> None:
    """Rate every checkpoint of a run without labels, and say which comparisons each score supports.

    Args:
        run: the run folder; `train` keeps more than the last checkpoint with --keep-every and --save-best.
        images: size of the fixed sample of training images.
        repeats: number of half-samples for each score's interval.
        branch: the branch whose encoder is rated.
        data: where the run's images are now, as in --data of `train`; by default where they were.
        all: show all scores of all checkpoints, in place of the few to look at first.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.run.scoring import score_run
    from rankgap.show.terminal import show_scores

    found = score_run(RunFolder(Path(run)), images=images, repeats=repeats, branch=branch, data=data)
    show_scores(found, everything=all)


def report(runs: list[str], out: str = "report.html") -> None:
    """Write a page about one or more runs, side by side: verdicts, results, ranks, loss, spectra and filters.

    Args:
        runs: run folders, finished or not, or folders of runs.
        out: the page's file (.html); an existing file is replaced.
    """
    from rankgap.data.names import shown
    from rankgap.run.finding import find_runs
    from rankgap.show.outputs import PAGE, output_file
    from rankgap.show.report.page import write_report
    from rankgap.show.terminal import say

    page = output_file(out, PAGE)
    folders, skipped = find_runs([Path(path) for path in runs])
    if skipped:
        say(("skipped:", "yellow"), f" {shown('; '.join(skipped))}")
    write_report(folders, page)
    count = f" on {len(folders)} runs" if len(folders) > 1 else ""
    say(f"report{count}: {shown(str(page))}", wrap=False)


def watch(run: str, every: float = 1.0) -> None:
    """Follow a run while it trains: loss, both ranks, speed, alarms. Works over ssh; Ctrl-C does not stop the run.

    Args:
        run: the run folder.
        every: seconds between two updates.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.show.live import follow

    if every <= 0:
        raise UserError(f"--every takes a number of seconds above 0, got {every:g}")
    follow(RunFolder(Path(run)), every)


def methods() -> None:
    """Show the zoo of methods as a table."""
    from rankgap.show.terminal import show_methods

    show_methods()


def design(
    online: str | None = None, target: str | None = None, spectrum: str | None = None, out: str = "design.png"
) -> None:
    """Assess a pair of filters without training: kind, rank difference, growth, numerics, and a picture.

    Args:
        online: the gain of the online filter: power:0.5, log1p, or a formula in s, such as "s/(s+0.1)".
        target: the gain of the target filter (power:-0.5).
        spectrum: the spectrum to assess it on: a run folder, or singular values over sqrt(batch size) in a file or
            as numbers (4,3,2,1); by default 256 directions whose eigenvalues fall as 1/j.
        out: the picture's file, whose suffix chooses the format: .png, .pdf or .svg.
    """
    from rankgap.model.maps import MAPS
    from rankgap.run.files import writing
    from rankgap.show.design_figure import design_figure
    from rankgap.show.outputs import PICTURE, output_file
    from rankgap.show.terminal import show_assessment
    from rankgap.theory.design import assess, reference_spectrum

    picture = output_file(out, PICTURE)
    for gain in (online, target):
        if gain is not None and gain.partition(":")[0] in MAPS:
            raise UserError(f"{gain} is set or trained during a run: a design takes a gain, such as power:0.5")
    if spectrum is not None and os.path.isdir(spectrum):
        from rankgap.run.folder import RunFolder
        from rankgap.run.reference import spectrum_of_run

        reference = spectrum_of_run(RunFolder(Path(spectrum)))
    else:
        reference = reference_spectrum(spectrum)
    found = assess(online, target, reference)
    with writing(picture):
        design_figure(found, picture)
    show_assessment(found, picture)


def inspect_data(
    data: str,
    method: str = "simsiam",
    size: int | None = None,
    channels: int | None = None,
    out: str = "contact_sheet.png",
    broken: str | None = None,
    seed: int = 0,
) -> int:
    """Inspect images: sizes, channels, broken files, statistics, views (exit code 1 if training would stop).

    Args:
        data: the images, as in --data of `train`.
        method: the method whose views are drawn.
        size: side of a view in pixels; by default the images' own up to 96 px, otherwise at most 224.
        channels: convert all images to this many channels (1 or 3).
        out: the contact sheet's file.
        broken: a text file to which the unreadable images are written, one per line with the reason.
        seed: seed of the sample and its views.
    """
    from rankgap.run.config import TrainConfig
    from rankgap.run.files import check_writable, replace_file, writing
    from rankgap.run.preview import preview
    from rankgap.show.outputs import PICTURE, output_file
    from rankgap.show.sheet import contact_sheet
    from rankgap.show.terminal import show_inspection

    config = TrainConfig(data=data, method=method, size=size, channels=channels, seed=seed)
    picture = output_file(out, PICTURE)
    for file in (out, broken):
        if file is not None:
            check_writable(Path(file).parent)
    found, names, batch, views = preview(config)
    if broken is not None:
        replace_file(Path(broken), "".join(f"{image}\n" for image in found.broken).encode())
    with writing(picture):
        contact_sheet(batch.images, views, names, picture)
    show_inspection(found, views.shape[-1], picture)
    return EXIT_PROBLEMS if found.problems else 0


COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "score": score,
    "report": report,
    "watch": watch,
    "methods": methods,
    "design": design,
    "inspect": inspect_data,
}
_POSITIONAL = {
    "evaluate": ("run",),
    "score": ("run",),
    "watch": ("run",),
    "compare": ("runs",),
    "report": ("runs",),
    "inspect": ("data",),
}
# Besides `train`, whose configuration keeps it: the commands that take a gain's or a map's name.
_IMPORTING = ("design", "evaluate", "score", "report")
_WITHOUT_COMMAND = ("--help", "--version")
_IMPORT = "a Python module or file (mine.py) to import first, whose gains and maps the command then knows"


def _check_names(given: Sequence[str]) -> None:
    """Refuse an unknown command or flag with the nearest name; the parser would only call it unrecognised."""
    command = next((word for word in given if not word.startswith("-")), None)
    if command is None:
        for word in given:
            if word.startswith("--") and word not in _WITHOUT_COMMAND:
                raise unknown("flag", word, _WITHOUT_COMMAND)
    elif command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    elif any(word.startswith("--") for word in given):
        from rankgap.run.flags import check_names

        more = ["--config"] if command == "train" else ["--import"] if command in _IMPORTING else []
        check_names(given, command, _filled(command), *more)


def _parser(given: Sequence[str]) -> ArgumentParser:
    """All commands, with flags only for those that are named: listing the commands must not load torch."""
    parser = ArgumentParser(
        prog="rankgap",
        description=rankgap.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        version=importlib.metadata.version("rankgap"),
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = (inspect.getdoc(command) or "").partition("\n")[0]
        sub = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        if name in given:
            from rankgap.run.flags import add_flags
        if name not in given:
            pass
        elif name == "train":
            from rankgap.run.config import TrainConfig

            sub.add_argument(
                "--config", type=str, default=SUPPRESS, help="a YAML file that sets any of these flags"
            )
            add_flags(sub, TrainConfig, headings=_HEADINGS)
        else:
            add_flags(sub, command, _POSITIONAL.get(name, ()))
        if name in _IMPORTING:
            sub.add_argument(
                "--import", dest="imports", action="append", default=SUPPRESS, metavar="TEXT", help=_IMPORT
            )
        commands.add_subcommand(name, sub, help=summary)
    return parser


def _fail(message: str, code: int) -> int:
    print(f"rankgap: {' '.join(line.strip() for line in message.splitlines())}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0, 1 if `inspect` finds that training would stop, 2 for an error the user can fix (the
        system refuses a file, for one), 3 for non-finite numbers, 128 + the signal for an interrupted run (130
        for Ctrl-C, 143 for SIGTERM, 141 where the reader of the output has closed it).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        try:
            _check_names(given)
            parsed = _parser(given).parse_args(given or ["--help"])
            name = parsed.subcommand
            flags = Namespace(parsed[name]).as_dict()
            if name in _IMPORTING and "imports" in flags:
                from rankgap.run.imports import import_all

                import_all(flags.pop("imports"))
            return COMMANDS[name](**_typed(name, flags)) or 0
        finally:
            sys.stdout.flush()
    except ArgumentError as error:
        return _fail(str(error), EXIT_USER)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich ends the program itself
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
    """The exit code where the system refuses a file. What we write says its name, except for the output itself."""
    if error.filename is None:  # what is left of the output goes nowhere: Python would fail on it once more
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
