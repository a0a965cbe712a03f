"""What the terminal shows: tables, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rankgap.model.methods import METHODS, PREDICTORS
from rankgap.run.folder import RESULT_COLUMNS, percent
from rankgap.watch.doctor import Diagnosis

if TYPE_CHECKING:  # a table need not wait for Lightning, timm and scipy
    from rankgap.data import Inspection
    from rankgap.evaluate.scores import RunScores
    from rankgap.run.plan import Experiment
    from rankgap.theory.design import Assessment

console = Console()


def announce(experiment: Experiment) -> None:
    """Say what was chosen and why, and warn of what is known to fail."""
    work, config = experiment.work, experiment.config
    console.print(
        f"[bold]{config.title}[/bold] on {config.data}: {work.images:,} images, {work.epochs} epochs of "
        f"{work.steps_per_epoch} steps, {experiment.backbone}, views of {experiment.size} px"
    )
    for kind, notes in (("data", experiment.train.notes), ("preset", experiment.notes)):
        for note in notes:
            console.print(f"  [dim]{kind}:[/dim] {note}", highlight=False)
    for warning in experiment.warnings:
        console.print(f"  [yellow]warning:[/yellow] {warning}", highlight=False)


def results_table(results: Mapping[str, Mapping[str, Any]], *, caption: str | None = None) -> Table:
    """A table of runs: accuracy in percent, effective ranks of the last batch."""
    table = Table(
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1),
    )
    table.add_column("method", overflow="fold")
    for column in RESULT_COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, row in results.items():
        table.add_row(name, *(show(row.get(key)) for key, show in RESULT_COLUMNS.values()))
    return table


CONVENTION = (
    "erank: exp of the entropy of the eigenvalues of the uncentred correlation of one batch "
    "(online view 1, target view 2); erank features: the same of the training images' encoder features."
)


def show_results(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print runs side by side, with the protocols they were measured by."""
    console.print(results_table(results, caption=CONVENTION))
    said: dict[str, None] = {}
    for title, row in results.items():
        for alarm in row.get("alarms", []):
            console.print(f"[yellow]alarm:[/yellow] {title}: {Diagnosis(**alarm)}", highlight=False)
        for line in [*dict(row.get("protocol", {})).values(), *row.get("notes", [])]:
            said[line] = None
        for name, scores in dict(row.get("sets", {})).items():
            if name != "test":
                numbers = ", ".join(f"{k} {percent(scores[k])}" for k in ("knn", "linear") if k in scores)
                console.print(f"{name}: {numbers}")
    for line in said:
        console.print(f"[dim]{line}[/dim]", highlight=False)


def show_scores(found: RunScores) -> None:
    """Print every checkpoint's label-free scores, and which one each prefers."""
    from rankgap.evaluate.scores import SCORES

    console.print(f"[bold]{found.title}[/bold], on {found.images:,} of its images", highlight=False)
    checkpoints = list(found.rated)
    for start in range(0, len(checkpoints), 4):  # as many as eighty columns hold
        names = checkpoints[start : start + 4]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("score", no_wrap=True)
        for name in names:
            table.add_column(f"{name}\nstep {found.steps[name]:,}", justify="right", no_wrap=True)
        for title in SCORES:
            rated = [found.rated[name][title] for name in names]
            cells = [
                f"{value:.3g} [dim]± {half:.2g}[/dim]" if math.isfinite(value) else "-" for value, half in rated
            ]
            table.add_row(title, *cells)
        console.print(table)
    for title, score in SCORES.items():
        first, near = found.best(title)
        told = f"; not told apart from it: {', '.join(near)}" if near else ""
        chosen = f"{first}{told}" if first else "not defined for any checkpoint"
        console.print(
            f"[bold]{title}[/bold] ({score.best} is best): {chosen}. [dim]It {score.valid}.[/dim]",
            highlight=False,
        )
    console.print(
        "[dim]Intervals: 1.96 standard deviations over random halves of the sample. No label was used. A network "
        "that has hardly trained has the high rank of its random weights: compare late checkpoints.[/dim]",
        highlight=False,
    )


def _counts(counts: Mapping[Any, int], show: Callable[[Any], str] = str, most: int = 6) -> str:
    """The most frequent of some values and how often each occurs."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{show(value)}: {count:,}" for value, count in ordered[:most])
    return text + (f", and {len(ordered) - most} others" if len(ordered) > most else "")


def show_inspection(found: Inspection, size: int, picture: Path) -> None:
    """Print what a data set holds, what is broken, and what training would refuse.

    Args:
        found: the inspection.
        size: side of a view in pixels.
        picture: where the contact sheet is.
    """
    table = Table(title=found.name, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    (low_h, mid_h, high_h), (low_w, mid_w, high_w) = found.side(0), found.side(1)
    rows = {
        "images": f"{found.train:,} to train on" + ("" if found.test is None else f", {found.test:,} to test"),
        "height, px": f"{low_h} least, {mid_h:g} median, {high_h} greatest",
        "width, px": f"{low_w} least, {mid_w:g} median, {high_w} greatest",
        "height x width": _counts(found.sizes, lambda side: f"{side[0]} x {side[1]}", most=4),
        "views": f"{size} x {size}, from images stored at {found.images.size} x {found.images.size}",
        "channels": _counts(found.channels),
        "formats": _counts(found.formats),
        "classes": "no labels" if found.classes is None else _counts(found.classes),
        "mean, per channel": " ".join(f"{m:.4f}" for m in found.mean) + "  (of values in [0, 1])",
        "deviation": " ".join(f"{s:.4f}" for s in found.std),
        "duplicates": f"{found.duplicates:,} training images"
        + ("" if found.test is None else f"; {found.leaked:,} test images are in the training set"),
        "broken": f"{len(found.broken):,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for note in found.notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    for broken in found.broken:
        console.print(f"[red]broken:[/red] {escape(broken.name)}: {escape(broken.reason)}", highlight=False)
    for problem in found.problems:
        console.print(f"[yellow]training would stop:[/yellow] {problem}", highlight=False)
    console.print(f"views beside their images: {picture}", highlight=False, soft_wrap=True)


def show_assessment(found: Assessment, picture: Path) -> None:
    """Print what a pair of filters would do, and what speaks against it.

    Args:
        found: the pair, assessed.
        picture: where its picture is.
    """
    kinds = {(True, False): "low-pass", (False, True): "high-pass", (True, True): "constant"}
    flow, baseline = (each.erank_online.tolist() for each in (found.flow, found.baseline))
    time = float(found.flow.times[-1]) / found.unit
    ended = ", where directions die out" if found.dies_out else ""
    rows = {
        "spectrum": f"{found.reference.name}: erank {found.erank:.1f}, {found.null} null",
        "gains": ", ".join(
            f"{side} {found.names[side]} ({kinds.get((gain.is_low_pass, gain.is_high_pass), 'neither')})"
            for side, gain in found.gains.items()
        ),
        "pair": f"{found.kind}: online against target, score {found.score:+.2f}",
        "erank": f"online {found.erank_online:.1f}, target {found.erank_target:.1f}: "
        f"rank difference {found.rank_difference:+.1f}",
        "filter lemma": "\n".join(
            f"{side}: {lemma.claim}, {lemma.left:.1f} >= {lemma.right:.1f}"
            if lemma.premise
            else f"{side}: promises nothing"
            for side, lemma in found.lemmas.items()
        ),
        "linear flow": f"online erank {flow[0]:.1f} -> {flow[-1]:.1f} by time {time:.3g}{ended}; "
        f"{found.rate:+.1f} a unit of time at first\nwithout filters {baseline[0]:.1f} -> {baseline[-1]:.1f}",
        "dynamic range": ", ".join(f"{name} {spread:.3g}" for name, spread in found.ranges.items()),
        "rounding": "\n".join(
            f"{each.dtype}: online {each.rounding_online:.1g} of the energy, target {each.rounding_target:.1g}"
            for each in found.numerics
        ),
        "largest output": ", ".join(f"{each.largest:.1g} of {each.dtype}'s" for each in found.numerics),
    }
    table = Table(title=found.title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    for warning in (warnings := found.warnings()):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    if not warnings:
        console.print("nothing speaks against it: dimensions grow, and the numbers are safe in every dtype above")
    console.print(
        "[dim]erank: of the correlation. Flow: the linear model, cosine loss, from white inputs; views share "
        "x²/(x² + n) of a direction, n a quarter of the mean x²; a unit of time is the sum of x². It compares "
        "designs and does not foretell a run's ranks. Dynamic range: strongest over weakest singular value.[/dim]",
        highlight=False,
    )
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)


def show_methods() -> None:
    """Print the zoo."""
    table = Table(
        caption="Any gain goes on any row: --online power:0.5, --target power:-0.5 (power:p, log, log1p, log1p2, "
        f"or a formula in s); so does, by --online, {', '.join(PREDICTORS[:-1])} or {PREDICTORS[-1]}.",
        caption_justify="left",
    )
    for column in ("method", "online map", "target map", "teacher", "alignment", "source"):
        table.add_column(column)
    for name, row in METHODS.items():
        table.add_row(
            name,
            " + ".join(row.online) or "identity",
            (" + ".join(row.target) or "identity") + ("" if row.stop_gradient else ", gradient kept"),
            "EMA" if row.ema else "shared",
            row.alignment,
            row.source,
        )
    console.print(table)


def show_demo(found: tuple[Mapping[str, Mapping[str, Any]], Path]) -> None:
    """Print the demo's table, where its picture is, and what to look at."""
    results, picture = found
    console.print(results_table(results, caption=CONVENTION))
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    console.print(
        "Look at the rank difference: where the target's rank stays above the online one's, dimensions grow "
        "and kNN is high; symsimsiam has none, and keeps the fewest dimensions."
    )
