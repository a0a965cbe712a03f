"""The commands that train, score and show runs."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankgap.choices import Protocol, Side
from rankgap.errors import UserError


def demo(out: str = "runs/demo", seed: int = 0, epochs: int = 40) -> None:
    """Train seven methods on scikit-learn's digits and show their rank differences (two minutes, no download).

    Args:
        out: folder for the runs and the picture; an earlier demo there is replaced.
        seed: seed of all runs.
        epochs: passes over the images in each run; far fewer show little.
    """
    from rankgap.demo import run_demo, story
    from rankgap.show.terminal import show_demo

    results, picture = run_demo(Path(out), seed, epochs=epochs)
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
        data: the new location of the run's images, as in `train --data`; by default the recorded one.
        eval: evaluation sets in addition to the data's own, as NAME=DATA; by default the run's.
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
        runs: run folders, finished or not, or folders of runs.
    """
    from rankgap.run.finding import find_runs
    from rankgap.run.folder import labels
    from rankgap.show.terminal import say_skipped, show_results

    folders, skipped = find_runs([Path(path) for path in runs])
    say_skipped(skipped)
    found = [folder.last_reading() | folder.results() for folder in folders]
    show_results(dict(zip(labels(folders), found, strict=True)))


def score(
    run: str,
    images: int = 2048,
    repeats: int = 20,
    branch: Side = "online",
    data: str | None = None,
    all: bool = False,
) -> None:
    """Score every checkpoint of a run without labels, and show which comparisons each score supports.

    Args:
        run: the run folder; `train` keeps more than the last checkpoint with --keep-every and --save-best.
        images: size of the fixed sample of training images.
        repeats: number of half-samples for each score's interval.
        branch: the branch whose encoder is scored.
        data: the new location of the run's images, as in `train --data`; by default the recorded one.
        all: show all scores of all checkpoints, not only the main ones.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.run.scoring import score_run
    from rankgap.show.terminal import show_scores

    folder = RunFolder(Path(run))
    found = score_run(folder, images=images, repeats=repeats, branch=branch, data=data)
    show_scores(found, folder.verdict(), everything=all)


def report(runs: list[str], out: str = "report.html") -> None:
    """Write a page that compares one or more runs: verdicts, results, ranks, loss, spectra and filters.

    Args:
        runs: run folders, finished or not, or folders of runs.
        out: the output file (.html); an existing file is replaced.
    """
    from rankgap.data.names import shown
    from rankgap.show.report.inline import report as make
    from rankgap.show.terminal import say, say_skipped

    made = make(runs, out)
    say_skipped(made.skipped)
    count = f" on {len(made.runs)} runs" if len(made.runs) > 1 else ""
    say(f"report{count}: {shown(out)}", wrap=False)


def watch(run: str, every: float = 1.0, web: bool = False) -> None:
    """Follow a run while it trains: loss, both ranks, speed, alarms. Works over ssh; Ctrl-C does not stop the run.

    Args:
        run: the run folder.
        every: seconds between updates.
        web: serve the run's report to browsers on this machine, as a page that updates itself, until Ctrl-C.
    """
    from rankgap.run.folder import RunFolder

    if every <= 0:
        raise UserError(f"--every must be above 0 seconds, got {every:g}")
    if web:
        from rankgap.show.web import serve as follow
    else:
        from rankgap.show.live import follow
    follow(RunFolder(Path(run)), every)
