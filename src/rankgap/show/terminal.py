"""Terminal output: tables of results, and what was chosen, found or refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankgap.data.names import plural, shown
from rankgap.model.methods import METHODS, choices
from rankgap.run.reader import read
from rankgap.show.columns import CONVENTION, KNN, LINEAR, RESULTS, Column, protocols
from rankgap.show.frozen_start import ROW, since_start, start_is_better, start_of
from rankgap.watch.doctor import Diagnosis
from rankgap.watch.verdict import Verdict

if TYPE_CHECKING:  # a table must not wait for Lightning, timm and scipy
    from rankgap.data import ImageSet, Inspection
    from rankgap.evaluate.scores import RunScores
    from rankgap.exporting.export import Export
    from rankgap.run.plan import Plan
    from rankgap.theory.design import Assessment

# Text is shown as it is: titles and file names may look like markup or emoji codes, but are neither.
console = Console(markup=False, emoji=False, highlight=False)

INTERVALS = (
    "Intervals are 1.96 standard deviations over random halves of the sample. No labels were used. A network that "
    "has barely trained still has the high rank of its random weights, so compare late checkpoints."
)
FLOW = (
    "erank is the effective rank of the correlation. The flow is that of the linear model, with the cosine loss "
    "and white inputs. Views share x²/(x² + n) of a direction, where n is a quarter of the mean x². A unit of "
    "time is the sum of x². The flow compares designs and does not predict the ranks of a run. The dynamic range "
    "is the strongest singular value over the weakest."
)
BROKEN = 20  # images that are named before only their reasons are counted
COLOURS: Mapping[str, str] = {"healthy": "green", "shrinking": "yellow", "collapsed": "red"}
WIDE = 80  # characters a line: in fewer, all results leave no room for a title
ACROSS = 3  # scores that fit in eighty columns
DOWN = 5  # checkpoints whose scores, with the text about them, fit on a screen of 24 lines


def say(*parts: str | tuple[str, str], wrap: bool = True) -> None:
    """Print a line of text.

    Args:
        parts: text, or text and the style it is printed in.
        wrap: break a line that is too long; without it, a path can be copied whole.
    """
    console.print(Text.assemble(*parts), soft_wrap=not wrap)


def say_skipped(folders: Sequence[str]) -> None:
    """Name the folders beside runs that hold none, each with the reason."""
    if folders:
        say(("skipped:", "yellow"), f" {shown('; '.join(folders))}")


def announce(plan: Plan) -> None:
    """Say what was chosen and why, and warn of what is known to fail."""
    work = plan.work
    say(
        (plan.config.title, "bold"),
        f" on {shown(plan.config.data)}: {work.images:,} images, {work.epochs} {plural(work.epochs, 'epoch')} of "
        f"{work.steps_per_epoch} {plural(work.steps_per_epoch, 'step')}, {plan.backbone}, views of {plan.size} px",
    )
    for label, style, lines in (
        ("data", "dim", plan.train.notes),
        ("note", "dim", plan.notes),
        ("warning", "yellow", (*plan.differences, *plan.warnings)),
    ):
        for line in lines:
            say("  ", (f"{label}:", style), f" {line}")


def results_table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[Column] = RESULTS) -> Table:
    """A table of runs; below a run that began with pretrained weights stand their own scores.

    Args:
        results: the results of each run, by title.
        columns: the numbers to show; a caption explains them below the last one.
    """
    table = Table(
        caption=CONVENTION if columns[-1] is RESULTS[-1] else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1),
    )
    table.add_column("method", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for column in columns:
        table.add_column(_narrow(column.heading), justify="right", no_wrap=True)
    for title, found in results.items():
        kind = dict(found.get("verdict", {})).get("kind", "-")
        table.add_row(title, Text(kind, COLOURS.get(kind, "")), *(column.cell(found) for column in columns))
        if start := start_of(found):
            table.add_row(f"  {ROW}", "", *(column.cell(start) for column in columns), style="dim")
    return table


def _show_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table of runs, in two parts if the terminal is narrow, so that no cell is cut off."""
    half = (len(RESULTS) + 1) // 2
    for columns in [RESULTS] if console.width >= WIDE else [RESULTS[:half], RESULTS[half:]]:
        console.print(results_table(results, columns))


def _narrow(heading: str) -> str:
    """A heading broken into short lines, which leaves room for titles in eighty columns."""
    return heading.replace(" ", "\n").replace("/", "\n/").replace("difference", "diff.")


def show_results(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print runs side by side, their alarms, and the protocols by which the accuracies were measured."""
    _show_table(results)
    lines: dict[str, None] = {}  # each once, in order
    show_verdicts(results)
    for found in results.values():
        lines |= dict.fromkeys([*protocols(found), *found.get("notes", [])])
        for name, scores in dict(found.get("sets", {})).items():
            if name != "test":
                say(f"{name}: ", ", ".join(f"{c.key} {c.cell(scores)}" for c in (KNN, LINEAR) if c.key in scores))
    if threads := _threads(results):
        lines[threads] = None
    for line in lines:
        say((line, "dim"))


def show_verdicts(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the verdict on each run, what became of its frozen start, and the alarms raised during training."""
    for title, found in results.items():
        if "verdict" in found:
            _say_verdict(title, read(Verdict, found["verdict"], f"the verdict on {title}"))
        if change := since_start(found):
            say((title, "bold"), f" since its {ROW}: {change}")
        if worse := start_is_better(found):
            say(("warning:", "yellow"), f" {title}: {worse}")
        for alarm in (Diagnosis(**each) for each in found.get("alarms", [])):
            say(("alarm:", "yellow"), f" {title}: {alarm.kind} at step {alarm.step}: {alarm.saw}")


def _say_verdict(title: str, verdict: Verdict) -> None:
    say(
        (title, "bold"),
        " is ",
        (verdict.kind, f"bold {COLOURS[verdict.kind]}"),
        f": {verdict.uses}. {verdict.why}".rstrip(),
    )


def _threads(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The number of threads with which each run was trained on a CPU; empty if there is none."""
    counts = {title: found["threads"] for title, found in results.items() if "threads" in found}
    different = len(set(counts.values())) > 1
    shown = (
        ", ".join(f"{title} {n}" for title, n in counts.items()) if different else next(iter(counts.values()), "")
    )
    return f"threads: {shown} (on a CPU, results depend on --threads as they do on --seed)" if counts else ""


def show_scores(found: RunScores, verdict: Verdict | None = None, *, everything: bool = False) -> None:
    """Print the label-free scores of a run's checkpoints, and which checkpoint each score prefers.

    Args:
        found: the scores.
        verdict: the run's verdict; None if it has none yet.
        everything: show all scores of all checkpoints, not only those that fit on one screen.
    """
    from rankgap.evaluate.scores import SCORES

    say((found.title, "bold"), f", on {found.images:,} of its images")
    for note in found.notes:
        say(("warning:", "yellow"), f" {note}")
    if verdict is not None:
        _say_verdict("the run", verdict)
    measured = next(iter(found.rated.values()))
    names = [name for name in measured if SCORES[name].first or everything]
    rows = list(found.rated) if everything else _some(list(found.rated), [found.best(name)[0] for name in names])
    for start in range(0, len(names), ACROSS):
        across = names[start : start + ACROSS]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("checkpoint", overflow="fold")
        table.add_column("step", justify="right", no_wrap=True)
        for name in across:
            best = SCORES[name].best
            table.add_column(f"{name}\n({best})" if best else name, justify="right", no_wrap=True)
        for row in rows:
            cells = (_interval(*found.rated[row][name]) for name in across)
            table.add_row(row, f"{found.steps[row]:,}", *cells)
        console.print(table)
    compares = len(set(found.steps.values())) > 1
    if not compares:
        say("A single checkpoint cannot be compared: train with --keep-every N to keep more.")
    for name in names:
        chosen = f": {_preferred(found, name, everything)}. It" if compares and SCORES[name].best else ""
        say((name, "bold"), chosen, (f" {SCORES[name].valid}.", "dim"))
    say((INTERVALS, "dim"))
    if not everything:
        left = len(found.rated) - len(rows)
        others = f"{left} more {plural(left, 'checkpoint')}, and " if left else ""
        say((f"--all adds {others}{', '.join(name for name in measured if name not in names)}", "dim"))


def _preferred(found: RunScores, score: str, by_name: bool) -> str:
    """The checkpoint that a score prefers, and those within its interval, by name or by number."""
    first, near = found.best(score)
    if not first:
        return "not defined for any checkpoint"
    others = ", ".join(near) if by_name else f"{len(near)} {plural(len(near), 'other')}"
    return f"prefers {first}" + (f"; within its interval: {others}" if near else "")


def _some(names: Sequence[str], kept: Sequence[str]) -> list[str]:
    """The names that fit on a screen, in order: those to keep, the last one, and others evenly spaced."""
    if len(names) <= DOWN:
        return list(names)
    chosen = {*kept, names[-1]} & set(names)
    spread = DOWN - len(chosen)
    chosen |= {names[i * len(names) // spread] for i in range(spread)}
    return [name for name in names if name in chosen]


def _interval(value: float, half: float) -> Text:
    if not math.isfinite(value):
        return Text("-")
    return Text.assemble(f"{value:.3g}", (f" ± {half:.2g}" if math.isfinite(half) else "", "dim"))


def _facts(title: str, rows: Mapping[str, str]) -> Table:
    """A table of two columns: what was looked at, and what was found."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _counts(counts: Mapping[Any, int], show: Callable[[Any], str] = str, most: int = 6) -> str:
    """The most frequent values and how often each occurs."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{show(value)}: {count:,}" for value, count in ordered[:most])
    return text + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def _sizes(sizes: Sequence[int]) -> str:
    """The sizes of views, with how many there are of each where they differ."""
    counts = Counter(sizes)
    return ", ".join(
        f"{count} of {size} x {size}" if len(counts) > 1 else f"{size} x {size}" for size, count in counts.items()
    )


def _kept(images: ImageSet) -> str:
    return "the originals" if images.centre < 1 else f"images stored at {images.size} x {images.size}"


def show_inspection(found: Inspection, sizes: Sequence[int], notes: Sequence[str], picture: Path) -> None:
    """Print what a data set holds, what is broken, and what training would refuse.

    Args:
        found: the inspection.
        sizes: side of each view in pixels.
        notes: what the views leave out for such images, one sentence each.
        picture: the contact sheet's file.
    """
    heights, widths = (
        f"{least} to {greatest}, median {median:g}" for least, median, greatest in (found.side(0), found.side(1))
    )
    tested = found.test is not None
    rows = {
        "images": f"{found.train:,} for training" + (f", {found.test:,} for testing" if tested else ""),
        "height, px": heights,
        "width, px": widths,
        "height x width": _counts(found.sizes, lambda side: f"{side[0]} x {side[1]}", most=4),
        "views": f"{_sizes(sizes)}, cut out of {_kept(found.images)}",
        "channels": _counts(found.channels),
        "pixels": _counts(found.types),
        "formats": _counts(found.formats),
        "classes": "no labels" if found.classes is None else _counts(found.classes),
        "mean, per channel": " ".join(f"{mean:.4f}" for mean in found.mean) + "  (of values in [0, 1])",
        "standard deviation": " ".join(f"{std:.4f}" for std in found.std),
        "duplicates": f"{found.duplicates:,} training images"
        + (f"; {found.leaked:,} test images are also training images" if tested else ""),
        "broken": f"{len(found.broken):,}",
    }
    console.print(_facts(found.name, rows))
    for note in (*found.notes, *notes):
        say((note, "dim"))
    reasons = Counter(broken.reason for broken in found.broken)
    for broken in found.broken[:BROKEN]:
        say(("broken:", "red"), f" {broken.name}: {broken.reason}", wrap=False)
    if len(found.broken) > BROKEN:
        say(("broken:", "red"), f" {len(found.broken) - BROKEN:,} more; --broken FILE writes the whole list")
        say(("reasons:", "red"), f" {_counts(dict(reasons.most_common()), most=8)}")
    if found.broken:
        say(("broken:", "red"), " repair or remove them, or train with --on-bad-image skip")
    for problem in found.problems:
        say(("training would stop:", "yellow"), f" {problem}")
    say(f"images and their views: {picture}", wrap=False)


def show_assessment(found: Assessment, picture: Path) -> None:
    """Print what a pair of filters would do, and any warnings about it.

    Args:
        found: the pair, assessed.
        picture: the picture's file.
    """
    console.print(_facts(found.title, found.facts()))
    for warning in (warnings := found.warnings()):
        say(("warning:", "yellow"), f" {warning}")
    if not warnings:
        say("no warnings: dimensions grow, and the numbers are safe in every dtype above")
    say((FLOW, "dim"))
    say(f"picture: {picture}", wrap=False)


def show_export(made: Export) -> None:
    """Print which files were written, what was found on the way, and why the encoder may be of little use."""
    for note in made.notes:
        say(("note:", "dim"), f" {note}")
    for warning in made.warnings:
        say(("warning:", "yellow"), f" {warning}")
    say(f"files: {', '.join(made.files)}")
    say(f"folder: {shown(str(made.folder))} (README.md says how to load it)", wrap=False)
    if made.address is not None:
        say(f"address: {made.address}", wrap=False)


def show_methods() -> None:
    """Print the zoo."""
    *maps, last = choices("online")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    for heading in ("method", "online map", "target map", "teacher", "alignment"):
        table.add_column(heading, overflow="fold")
    for name, row in METHODS.items():
        table.add_row(
            name,
            " + ".join(row.online) or "identity",
            (" + ".join(row.target) or "identity") + ("" if row.stop_gradient else "*"),
            "EMA" if row.ema else "shared",
            row.alignment,
        )
    console.print(table)
    say("* this target carries a gradient; the others carry none")
    for name, row in METHODS.items():
        say((name, "bold"), f": {row.source}")
    say(
        "Every method takes any gain: --online power:0.5, --target power:-0.5 (power:p, log, log1p, log1p2, or a "
        f"formula in s). --online also takes {', '.join(maps)} or {last}."
    )


def show_demo(results: Mapping[str, Mapping[str, Any]], picture: Path, story: str) -> None:
    """Print the demo's table and verdicts, their meaning, and what to do next.

    Args:
        results: the results of each run, by title.
        picture: the picture of their ranks.
        story: what the runs show, in words.
    """
    _show_table(results)
    show_verdicts(results)
    say(f"\n{story}\n")
    say(f"picture: {picture}", wrap=False)
    say(f"next:    rankgap report {picture.parent}", wrap=False)
    say("         rankgap train --method simsiam --target power:-0.5 --data folder:YOUR_IMAGES", wrap=False)
