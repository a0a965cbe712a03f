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
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError, unusable

if TYPE_CHECKING:  # listing the commands must not load torch
    from rankgap.evaluate.evaluation import Protocol
    from rankgap.spectra.pair import Side

EXIT_USER, EXIT_NON_FINITE, EXIT_INTERRUPTED = 2, 3, 130  # a run that another signal ends: 128 + its number
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

    target: Callable[..., Any] = COMMANDS[command]
    from_file: dict[str, Any] = {}
    if command == "train":
        from rankgap.run.config import TrainConfig

        target = TrainConfig
        if "config" in flags:
            from_file = _from_file(flags.pop("config"))
    kinds = parameters(target)
    return from_file | {
        name: read(kinds[name][0], plain_value(name, kinds[name][0], given), flag(name))
        for name, given in flags.items()
    }


def demo(out: str = "runs/demo", seed: int = 0) -> None:
    """Train seven methods on scikit-learn's digits and show their rank differences (two minutes, no download).

    Args:
        out: folder for the runs and the picture; an earlier demo there is replaced.
        seed: seed of all runs.
    """
    from rankgap.demo import run_demo
    from rankgap.show.terminal import show_demo

    show_demo(run_demo(Path(out), seed))


def train(**given: Any) -> None:
    """Train and evaluate an encoder, and log the ranks of both branches."""
    from rankgap.run.config import TrainConfig
    from rankgap.run.processes import is_main_process
    from rankgap.run.trainer import resumed
    from rankgap.run.trainer import train as run
    from rankgap.show.progress import Progress
    from rankgap.show.terminal import announce, show_results

    config = TrainConfig(**given)
    if config.resume:
        config = resumed(config.path, given)
    results = run(config, callbacks=[Progress(config.title)], announce=announce)
    if is_main_process():
        show_results({config.title: results})
        print(f"run folder: {config.path}")


def _from_file(path: str) -> dict[str, Any]:
    """The configuration fields that a YAML file sets."""
    from rankgap.run.config import TrainConfig
    from rankgap.run.reader import parse_yaml, read_fields, read_text

    values = parse_yaml(read_text(Path(path)), path)
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected keys and values, got {type(values).__name__}")
    return read_fields(TrainConfig, values, lambda name: f"{path}: {name}")


def evaluate(
    run: str,
    protocol: tuple[Protocol, ...] = ("knn", "linear"),
    branch: Side = "online",
    eval: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Evaluate a run's last checkpoint again, and update its results.json.

    Args:
        run: the run folder.
        protocol: knn, linear, linear_sgd, joined by commas; none for label-free ranks only.
        branch: the branch whose encoder is evaluated; the target's is the EMA teacher if the method has one.
        eval: evaluation sets in addition to the data's own, as NAME=DATA; by default those of the run.
    """
    from rankgap.run.files import check_writable
    from rankgap.run.folder import RunFolder
    from rankgap.run.restored import evaluate_plan, restore
    from rankgap.show.terminal import show_results

    folder = RunFolder(Path(run))
    changes: dict[str, Any] = {"protocol": protocol} | ({"eval": eval} if eval else {})
    before = folder.results()
    check_writable(folder.path)
    plan = restore(run, **changes)
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


def score(run: str, images: int = 2048, repeats: int = 20, branch: Side = "online") -> None:
    """Rate every checkpoint of a run without labels, and say which comparisons each score supports.

    Args:
        run: the run folder; `train` keeps more than the last checkpoint with --keep-every and --save-best.
        images: size of the fixed sample of training images.
        repeats: number of half-samples for each score's interval.
        branch: the branch whose encoder is rated.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.run.scoring import score_run
    from rankgap.show.terminal import show_scores

    show_scores(score_run(RunFolder(Path(run)), images=images, repeats=repeats, branch=branch))


def report(runs: list[str], out: str = "report.html") -> None:
    """Write a page about one or more runs, side by side: ranks, spectra, filters, results and alarms.

    Args:
        runs: run folders, finished or not.
        out: the page's file; an existing file is replaced.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.show.report.page import write_report

    write_report([RunFolder(Path(path)) for path in runs], out)
    print(f"report: {out}")


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
        out: the picture's file.
    """
    from rankgap.model.maps import MAPS
    from rankgap.run.files import writing
    from rankgap.show.design_figure import design_figure
    from rankgap.show.terminal import show_assessment
    from rankgap.theory.design import assess, reference_spectrum

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
    with writing(Path(out)):
        design_figure(found, out)
    show_assessment(found, Path(out))


def inspect_data(
    data: str,
    method: str = "simsiam",
    size: int | None = None,
    channels: int | None = None,
    out: str = "contact_sheet.png",
    broken: str | None = None,
    seed: int = 0,
) -> None:
    """Inspect images before training: sizes, channels, broken files, statistics, and a picture of their views.

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
    from rankgap.show.sheet import contact_sheet
    from rankgap.show.terminal import show_inspection

    config = TrainConfig(data=data, method=method, size=size, channels=channels, seed=seed)
    for file in (out, broken):
        if file is not None:
            check_writable(Path(file).parent)
    found, batch, views = preview(config)
    if broken is not None:
        replace_file(Path(broken), "".join(f"{image}\n" for image in found.broken).encode())
    with writing(Path(out)):
        contact_sheet(batch.images, views, out)
    show_inspection(found, views.shape[-1], Path(out))


COMMANDS: dict[str, Callable[..., None]] = {
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
        The exit code: 0, 2 for an error the user can fix (the system refuses a file, for one), 3 for non-finite
        numbers, 128 + the signal for an interrupted run (130 for Ctrl-C, 143 for SIGTERM, 141 where the reader of
        the output has closed it).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        try:
            parsed = _parser(given).parse_args(given or ["--help"])
            name = parsed.subcommand
            COMMANDS[name](**_typed(name, Namespace(parsed[name]).as_dict()))
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
    return 0


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
