"""The report: one HTML page about one run, or many side by side, that opens from disk without a network.

Plotly draws in the browser, and its script is part of the page. Each figure comes with a sentence that says how to
read it, with its data as CSV and, where it changes during training, with a slider.
"""

from __future__ import annotations

import html
import json
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from plotly.offline import get_plotlyjs

from rankgap.run.files import replace_file, writing
from rankgap.run.folder import RunFolder, labels
from rankgap.run.reader import plain
from rankgap.run.saved import library_versions
from rankgap.show.colours import DARK, LIGHT
from rankgap.show.columns import CONVENTION, KNN, LINEAR, RESULTS, SPEED
from rankgap.show.report.panels import (
    Panel,
    Run,
    alignment_panel,
    bars_panel,
    filter_panel,
    ranks_panel,
    spectra_panel,
)

RANKS = (
    'Where the <b class="target">target</b> is above the <b class="online">online</b> branch (blue area), '
    "dimensions grow; where it is below (purple, hatched), they collapse. All panels share the vertical axis."
)
SPECTRA = (
    "Singular values of one batch: online view 1 and target view 2, whose ranks are drawn above. A curve that "
    "falls steeply keeps few dimensions; the branch whose curve lies higher has the higher rank. A curve ends "
    "where the null space begins. Move the slider to follow training."
)
FILTERS = (
    "Each point is an eigen-direction of the target. The transfer is what the online branch passes on along that "
    "direction itself; the measured gain adds what leaks into it from stronger directions. Points that rise to "
    "the right are a low-pass filter, which keeps the strong directions; points that fall are a high-pass filter. "
    "The score, from +1 to -1, says how clearly, with each pair of directions weighted by its energy. The axes "
    "are shares of the largest singular value and of the largest transfer."
)
ALIGNMENT = (
    "At 1, this eigenvector of the target is also an eigenvector of the online branch, so that the branches "
    "differ only by a filter. The theory assumes this of the strong directions, on the left."
)
BARS = "Longer is better. Compare speeds only between runs of the same model on the same machine."
SLIDER = (
    '<label class="slider">training <input type="range" min="0" max="1000" value="1000"> <output></output></label>'
)


def _draw(panel: Panel) -> str:
    title, note = html.escape(panel.title), html.escape(panel.note)
    if panel.figure is None:
        return f'<figure><figcaption><h3>{title}</h3></figcaption><p class="empty">{note}</p></figure>'
    height = f' style="height:{max(9, 4 + 2.6 * panel.rows):g}rem"' if panel.rows else ""
    return (
        f'<figure><figcaption><h3>{title}</h3><button type="button">data</button><small>{note}</small>'
        f'</figcaption><div class="plot" id="{panel.name}"{height} role="img" aria-label="{title}"></div></figure>'
    )


def _section(title: str, reading: str, panels: Sequence[Panel], *, wide: bool = False) -> str:
    slider = SLIDER if any(panel.frames for panel in panels) else ""
    grid = f'<div class="{"panels wide" if wide else "panels"}">{"".join(map(_draw, panels))}</div>'
    return f"<section><h2>{title}</h2><p>{reading}</p>{slider}{grid}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="scroll"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def _results(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        cells = (column.cell(run.results) for column in RESULTS)
        asked = run.saved.run
        rows.append([run.label, run.state, *cells, str(asked.seed), asked.data])
    protocols = dict.fromkeys(said for run in runs for said in dict(run.results.get("protocol", {})).values())
    notes = "".join(f"<li>{html.escape(said)}</li>" for said in protocols)
    headings = ["run", "state", *(column.heading for column in RESULTS), "seed", "data"]
    return (
        f"<section><h2>Results</h2><p>{html.escape(CONVENTION)}</p>{_table(headings, rows)}"
        + (f"<details><summary>How this was measured</summary><ul>{notes}</ul></details>" if notes else "")
        + "</section>"
    )


def _alarms(runs: Sequence[Run]) -> str:
    found = [(run.label, alarm) for run in runs for alarm in run.alarms]
    items = "".join(
        f'<li><b class="alarm">{html.escape(label)}</b>: {html.escape(str(alarm))}</li>' for label, alarm in found
    )
    said = f"<ul>{items}</ul>" if items else "<p>No run raised an alarm.</p>"
    return f"<section><h2>Alarms</h2>{said}</section>"


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
        f"<details><summary>{html.escape(run.label)} ({html.escape(str(run.folder.path))})</summary><pre>"
        f"{html.escape(yaml.safe_dump(each, sort_keys=False, allow_unicode=True))}</pre></details>"
        for run, each in zip(runs, saved, strict=True)
    )
    return f'<section id="configuration"><h2>Configuration</h2>{differ}{whole}</section>'


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def report_page(folders: Sequence[RunFolder]) -> str:
    """The report on some runs, as an HTML page.

    Args:
        folders: one or more runs. Where a run lacks readings, spectra or results, the page says so.

    Raises:
        UserError: a folder holds no run, or its files cannot be read.
    """
    runs = [Run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    ranks = [v for run in runs for name in ("erank_online", "erank_target") for v in run.metrics.get(name, [])]
    ceiling = max([v for v in ranks if math.isfinite(v)], default=10.0)
    each = list(enumerate(runs))
    sections: list[tuple[str, str, list[Panel]]] = [
        (
            "Effective rank of both branches during training",
            RANKS,
            [ranks_panel(run, i, ceiling) for i, run in each],
        ),
        ("Singular values", SPECTRA, [spectra_panel(run, i) for i, run in each]),
        ("Measured filter", FILTERS, [filter_panel(run, i) for i, run in each]),
        ("Eigenspace alignment", ALIGNMENT, [alignment_panel(run, i) for i, run in each]),
    ]
    accuracy = {"kNN": (KNN.key, "knn", KNN.factor), "linear": (LINEAR.key, "muted", LINEAR.factor)}
    speed = {SPEED.heading: (SPEED.key, "target", SPEED.factor)}
    bars = [
        bars_panel(runs, "accuracy", "accuracy, %", accuracy),
        bars_panel(runs, "speed", f"training speed, {SPEED.heading}", speed),
    ]
    panels = [panel for _, _, drawn in sections for panel in drawn] + bars
    figures = {
        panel.name: panel.figure.to_plotly_json() | {"frames": panel.frames}
        for panel in panels
        if panel.figure is not None
    }
    body = [
        _results(runs),
        _alarms(runs),
        *(_section(*section) for section in sections),
        _section("Accuracy and speed", BARS, bars, wide=True),
        _configurations(runs),
    ]
    here = resources.files("rankgap.show.report")
    version = library_versions()["rankgap"]
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side"
    return string.Template((here / "page.html").read_text()).substitute(
        title=html.escape(f"rankgap: {title}"),
        about=f"rankgap {version}. This page was made from the run folders alone. It sends no data.",
        style=string.Template((here / "page.css").read_text()).substitute(
            light=_variables(LIGHT), dark=_variables(DARK)
        ),
        body="\n".join(body),
        figures=json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        plotly=get_plotlyjs(),
        script=(here / "page.js").read_text(),
    )


def write_report(folders: Sequence[RunFolder], out: str | Path) -> None:
    """Write `report_page` to a file; its folder is created if there is none.

    Raises:
        UserError: as in `report_page`, or the file cannot be written.
    """
    path = Path(out)
    page = report_page(folders)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())
