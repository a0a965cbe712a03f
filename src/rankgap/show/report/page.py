"""The report: one HTML page about one run, or many side by side, that opens from disk without a network.

The verdicts come first. Plotly draws in the browser, and its script is part of the page. Each figure has a
sentence on how to read it and can be saved as CSV and SVG. Figures that change during training have a slider.
"""

from __future__ import annotations

import html
import json
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from plotly.offline import get_plotlyjs

from rankgap.data.names import shown
from rankgap.run.files import replace_file, writing
from rankgap.run.folder import RunFolder, labels
from rankgap.run.reader import plain
from rankgap.run.saved import library_versions
from rankgap.show.colours import DARK, LIGHT
from rankgap.show.columns import CONVENTION, KNN, LINEAR, RANK_DIFFERENCE, RESULTS, SPEED, protocols
from rankgap.show.frozen_start import ROW, since_start, start_is_better, start_of
from rankgap.show.outputs import PAGE, output_file
from rankgap.show.report.panels import (
    Panel,
    alignment_panel,
    bars_panel,
    filter_panel,
    loss_panel,
    ranks_panel,
    spectra_panel,
)
from rankgap.show.report.runs import Run

RANKS = (
    'Where the <b class="target">target</b> is above the <b class="online">online</b> branch (blue area), '
    "dimensions grow; where it is below (purple, hatched), they collapse. All panels share the vertical axis."
)
LOSS = (
    "The loss says little about collapse: a collapsed run may have the lowest loss. Compare losses only within "
    "a run. The learning rate is drawn below."
)
SPECTRA = (
    "Singular values of one batch: online view 1 and target view 2, whose ranks are drawn above. A curve that "
    "falls steeply keeps few dimensions; the branch whose curve lies higher has the higher rank. A curve ends "
    "where the null space begins. Move the slider to follow training; all sliders on the page move together."
)
FILTERS = (
    "Each point is an eigen-direction of the target. The transfer is what the online branch passes on along that "
    "direction itself; the measured gain adds what leaks into it from stronger directions. Points that rise to "
    "the right are a low-pass filter, which keeps the strong directions; points that fall are a high-pass filter. "
    "The score, from +1 to -1, says how clearly, with each pair of directions weighted by its energy. The axes "
    "are shares of the largest singular value, and of the largest transfer among the directions that hold 99% of "
    "the target's energy."
)
ALIGNMENT = (
    "At 1, this eigenvector of the target is also an eigenvector of the online branch, so that the branches "
    "differ only by a filter. The theory assumes this of the strong directions, on the left."
)
BARS = "Longer is better. Compare speeds only between runs of the same model on the same machine."
MARKS = {"collapsed": "✕", "shrinking": "▼", "healthy": "✓", "none": "…"}  # the worst first


def escaped(text: str) -> str:
    """Text as one line of HTML, without markup."""
    return html.escape(shown(text))


def _draw(panel: Panel) -> str:
    title, note = escaped(panel.title), escaped(panel.note)
    if panel.figure is None:
        return f'<figure><figcaption><h3>{title}</h3></figcaption><p class="empty">{note}</p></figure>'
    height = f' style="height:{max(9, 5 + 1.5 * panel.rows):g}rem"' if panel.rows else ""
    return (
        f"<figure><figcaption><h3>{title}</h3><span>{_button('csv', panel)}{_button('svg', panel)}</span>"
        f"<small>{note}</small></figcaption>"
        f'<div class="plot" id="{panel.name}"{height} role="img" aria-label="{title}"></div></figure>'
    )


def _button(kind: str, panel: Panel) -> str:
    label = escaped(f"Save {panel.file}.{kind}")
    return f'<button type="button" class="{kind}" title="{label}" aria-label="{label}">{kind.upper()}</button>'


def _slider(title: str) -> str:
    said = escaped(title)
    return (
        f'<label class="slider">{said} <input type="range" min="0" max="100" step="4" value="100" '
        f'aria-label="{said} of all runs, share of training"> <output></output></label>'
    )


def _section(title: str, reading: str, panels: Sequence[Panel], *, wide: bool = False) -> str:
    slider = _slider(title) if any(panel.frames for panel in panels) else ""
    grid = f'<div class="{"panels wide" if wide else "panels"}">{"".join(map(_draw, panels))}</div>'
    return f"<section><h2>{title}</h2><p>{reading}</p>{slider}{grid}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll" tabindex="0"><table>{line(head, "th")}{body}</table></div>'


def _verdict(run: Run) -> tuple[str, str, str]:
    """The kind of a run's verdict, the verdict in words, and the reason and remedy."""
    found = run.verdict
    if found is None:
        missing = "its results were written before verdicts existed" if run.done else "the run has not finished"
        said = str(run.diagnosis).rstrip(".")
        latest = "No reading yet." if run.diagnosis is None else f"The latest diagnosis is {said}."
        return "none", f"no verdict: {missing}", latest
    return found.kind, f"{found.kind}: {found.uses}", found.why


def _verdicts(runs: Sequence[Run]) -> str:
    judged = sorted(((run, *_verdict(run)) for run in runs), key=lambda each: list(MARKS).index(each[1]))
    counted = Counter(kind for _, kind, _, _ in judged)
    count = ", ".join(
        f"{counted[kind]} {'without a verdict' if kind == 'none' else kind}" for kind in MARKS if counted[kind]
    )
    items = "".join(
        f'<li class="{kind}"><b><span aria-hidden="true">{MARKS[kind]}</span> {escaped(said)}</b> '
        f"<i>{escaped(run.label)}</i><small>{escaped(why)}</small>{_since_start(run)}</li>"
        for run, kind, said, why in judged
    )
    summary = f"<p>{count}.</p>" if len(runs) > 1 else ""
    return f'<section id="verdicts"><h2>Verdict</h2>{summary}<ul>{items}</ul></section>'


def _since_start(run: Run) -> str:
    """What became of a run's pretrained weights; empty if it began with random ones."""
    change, worse = since_start(run.results), start_is_better(run.results)
    warning = f'<small class="worse">{escaped(worse[:1].upper() + worse[1:])}</small>' if worse else ""
    return f"<small>Since its {ROW}: {escaped(change)}</small>{warning}" if change else ""


def _results(runs: Sequence[Run]) -> str:
    columns = (RANK_DIFFERENCE, *(column for column in RESULTS if column != RANK_DIFFERENCE))  # a phone shows two
    rows = []
    for run in runs:
        cells = (column.cell(run.results) for column in columns)
        asked = run.saved.run
        rows.append([run.label, *cells, run.state, str(asked.seed), asked.data])
        if start := start_of(run.results):
            cells = (column.cell(start) for column in columns)
            rows.append([f"{ROW} of {run.label}", *cells, asked.init or "", str(asked.seed), asked.data])
    measured = dict.fromkeys(said for run in runs for said in protocols(run.results))
    notes = "".join(f"<li>{escaped(said)}</li>" for said in measured)
    headings = ["run", *(column.heading for column in columns), "state", "seed", "data"]
    return (
        f'<section id="results"><h2>Results</h2><p>{escaped(CONVENTION)}</p>{_table(headings, rows)}'
        + (f"<details><summary>How this was measured</summary><ul>{notes}</ul></details>" if notes else "")
        + "</section>"
    )


def _alarms(runs: Sequence[Run]) -> str:
    found = [(run.label, alarm) for run in runs for alarm in run.alarms]
    items = "".join(
        f'<li><b class="alarm">{escaped(label)}</b>: {escaped(str(alarm))}</li>' for label, alarm in found
    )
    silent = [run.label for run in runs if run.verdict and run.verdict.kind != "healthy" and not run.alarms]
    none = "No alarm was raised during training." if all(run.done for run in runs) else "No alarm so far."
    said = f"<ul>{items}</ul>" if items else f"<p>{none}</p>"
    if silent:
        names = escaped(", ".join(silent))
        said += (
            f"<p>Not healthy at the end, without an alarm: {names}. The verdict also judges the newest reading, "
            "the second half of the run and the features.</p>"
        )
    return f'<section id="alarms"><h2>Alarms</h2>{said}</section>'


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}").items()}
    return {prefix[1:]: "" if values is None else str(values)}


def _configurations(runs: Sequence[Run]) -> str:
    saved = [plain(run.saved) for run in runs]
    flat = [_flat({key: each[key] for key in ("run", "model", "recipe", "versions")}) for each in saved]
    keys = [key for key in dict.fromkeys(k for f in flat for k in f) if len({f.get(key, "") for f in flat}) > 1]
    differ = (
        "<p>Settings that differ between the runs:</p>"
        + _table(["", *(run.label for run in runs)], [[key, *(f.get(key, "") for f in flat)] for key in keys])
        if len(runs) > 1
        else ""
    )
    whole = "".join(
        f"<details><summary>{escaped(run.label)} ({escaped(str(run.folder.path))})</summary><pre>"
        f"{html.escape(yaml.safe_dump(each, sort_keys=False, allow_unicode=True))}</pre></details>"
        for run, each in zip(runs, saved, strict=True)
    )
    return f'<section id="configuration"><h2>Configuration</h2>{differ}{whole}</section>'


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


@dataclass(frozen=True, slots=True)
class Contents:
    """What a page says about some runs.

    Args:
        title: the page's title, as HTML.
        kind: "one" run or "many", which the layout depends on.
        body: the sections, as HTML.
        figures: the figures, by the id of the element that each is drawn in.
    """

    title: str
    kind: str
    body: str
    figures: Mapping[str, Any]


def contents(folders: Sequence[RunFolder]) -> Contents:
    """What the report says about some runs.

    Args:
        folders: one or more runs. Where a run lacks readings, spectra or results, the page says so.

    Raises:
        UserError: a folder holds no run, or its files cannot be read.
    """
    runs = [Run(folder, shown(label)) for folder, label in zip(folders, labels(folders), strict=True)]
    ranks = [v for run in runs for name in ("erank_online", "erank_target") for v in run.metrics.get(name, [])]
    ceiling = max([v for v in ranks if math.isfinite(v)], default=10.0)
    each = list(enumerate(runs))
    sections: list[tuple[str, str, list[Panel]]] = [
        (
            "Effective rank of both branches during training",
            RANKS,
            [ranks_panel(run, i, ceiling) for i, run in each],
        ),
        ("Loss and learning rate", LOSS, [loss_panel(run, i) for i, run in each]),
        ("Singular values", SPECTRA, [spectra_panel(run, i) for i, run in each]),
        ("Measured filter", FILTERS, [filter_panel(run, i) for i, run in each]),
        ("Eigenspace alignment", ALIGNMENT, [alignment_panel(run, i) for i, run in each]),
    ]
    accuracy = {"kNN": (KNN, "knn"), "linear": (LINEAR, "muted")}
    speed = {SPEED.heading: (SPEED, "target")}
    bars = [
        bars_panel(runs, "accuracy", "accuracy, %", accuracy),
        bars_panel(runs, "speed", f"training speed, {SPEED.heading}", speed),
    ]
    panels = [panel for _, _, drawn in sections for panel in drawn] + bars
    body = [
        _verdicts(runs),
        _alarms(runs),
        _results(runs),
        *(_section(*section) for section in sections),
        _section("Accuracy and speed", BARS, bars, wide=True),
        _configurations(runs),
    ]
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side"
    return Contents(
        title=escaped(f"rankgap: {title}"),
        kind="one" if len(runs) == 1 else "many",
        body="\n".join(body),
        figures={
            panel.name: panel.figure.to_plotly_json() | {"frames": panel.frames, "file": panel.file}
            for panel in panels
            if panel.figure is not None
        },
    )


def page(contents: Contents, *, about: str, scripts: str, style: str = "") -> str:
    """A page as HTML.

    Args:
        contents: what it says.
        about: a paragraph below its title, as HTML.
        scripts: the elements of its scripts: Plotly's, and the page's own.
        style: its own style, after that of every page.
    """
    return string.Template(own_file("page.html")).substitute(
        title=contents.title,
        about=about,
        style=string.Template(own_file("page.css")).substitute(light=_variables(LIGHT), dark=_variables(DARK))
        + style,
        kind=contents.kind,
        body=contents.body,
        figures=json.dumps(contents.figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        scripts=scripts,
    )


def own_file(name: str) -> str:
    """The text of one of the page's own files."""
    return (resources.files("rankgap.show.report") / name).read_text(encoding="utf-8")


def report_page(folders: Sequence[RunFolder]) -> str:
    """The report on some runs, as a page that holds all that it needs.

    Raises:
        UserError: as in `contents`.
    """
    version = library_versions()["rankgap"]
    return page(
        contents(folders),
        about=f"<p>rankgap {version}. This page was made from the run folders alone. It sends no data.</p>",
        scripts=f"<script>{get_plotlyjs()}</script>\n<script>{own_file('page.js')}</script>",
    )


def write_report(folders: Sequence[RunFolder], out: str | Path) -> None:
    """Write `report_page` to a file, as `write_page` does.

    Raises:
        UserError: as in `report_page` and `write_page`.
    """
    output_file(out, PAGE)  # before any work
    write_page(report_page(folders), out)


def write_page(text: str, out: str | Path) -> None:
    """Write a page to a file; its folder is created if there is none.

    Raises:
        UserError: the file cannot be written or is not an .html file.
    """
    path = output_file(out, PAGE)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
