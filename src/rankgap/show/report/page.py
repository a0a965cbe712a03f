"""The report: one HTML page of one run, or of many side by side, that opens from disk without a network.

Plotly draws in the browser; its script is part of the page. Each figure comes with a sentence that says how to
read it, its data as CSV, and, where it changes along training, a slider.
"""

from __future__ import annotations

import html
import json
import math
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from plotly.offline import get_plotlyjs

import rankgap
from rankgap.errors import UserError
from rankgap.run.folder import RESULT_COLUMNS, RunFolder, labels, replace_file
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
    '<b class="target">Target</b> above <b class="online">online</b> (blue area): dimensions grow. Below (purple, '
    "hatched): they collapse. All panels share the vertical axis."
)
SPECTRA = (
    "Of one batch, all views. A curve that falls steeply keeps few dimensions; the branch whose curve lies higher "
    "has the higher rank. Where a curve ends, the null space begins. Move the slider along training."
)
FILTERS = (
    "Each point is an eigen-direction of the target. The transfer is what the online branch passes on along that "
    "direction itself; the measured gain adds what leaks into it from stronger ones. Rising to the right is a "
    "low-pass filter (it keeps the strong directions), falling is a high-pass; the score, from +1 to -1, says how "
    "clearly, counting each pair of directions by its energy. Axes are shares of the largest singular value and "
    "the largest transfer."
)
ALIGNMENT = (
    "1: this eigenvector of the target is one of the online branch too, so that the two differ by a filter alone. "
    "The theory assumes this of the strong directions, on the left."
)
BARS = "Longer is better. Speeds compare only where machine and model are the same."
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
    grid = f'<div class="panels{" wide" * wide}">{"".join(map(_draw, panels))}</div>'
    return f"<section><h2>{title}</h2><p>{reading}</p>{slider}{grid}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="scroll"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def _results(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        about = run.config["run"]
        rows.append(
            [
                run.label,
                run.state,
                *(show(run.results.get(key)) for key, show in RESULT_COLUMNS.values()),
                str(about["seed"]),
                str(about["data"]),
            ]
        )
    protocols = dict.fromkeys(said for run in runs for said in dict(run.results.get("protocol", {})).values())
    notes = "".join(f"<li>{html.escape(said)}</li>" for said in protocols)
    return (
        "<section><h2>Results</h2><p>Effective ranks are of the last batch read: exp of the entropy of the "
        'eigenvalues of its uncentred correlation, <b class="online">online</b> view 1 and '
        '<b class="target">target</b> view 2.</p>'
        f"{_table(['run', 'state', *RESULT_COLUMNS, 'seed', 'data'], rows)}"
        + (f"<details><summary>How this was measured</summary><ul>{notes}</ul></details>" if notes else "")
        + "</section>"
    )


def _alarms(runs: Sequence[Run]) -> str:
    found = [(run.label, alarm) for run in runs for alarm in run.alarms]
    items = "".join(
        f'<li><b class="alarm">{html.escape(label)}</b>: {html.escape(str(alarm))}</li>' for label, alarm in found
    )
    return f"<section><h2>Alarms</h2>{f'<ul>{items}</ul>' if items else '<p>No run raised one.</p>'}</section>"


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}").items()}
    return {prefix[1:]: "" if values is None else str(values)}


def _configurations(runs: Sequence[Run]) -> str:
    flat = [_flat({key: run.config.get(key) for key in ("run", "model", "recipe", "versions")}) for run in runs]
    keys = [key for key in dict.fromkeys(k for f in flat for k in f) if len({f.get(key, "") for f in flat}) > 1]
    differ = (
        "<p>What differs between the runs:</p>"
        + _table(["", *(run.label for run in runs)], [[key, *(f.get(key, "") for f in flat)] for key in keys])
        if len(runs) > 1
        else ""
    )
    whole = "".join(
        f"<details><summary>{html.escape(run.label)} ({html.escape(str(run.folder.path))})</summary><pre>"
        f"{html.escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))}</pre></details>"
        for run in runs
    )
    return f'<section id="configuration"><h2>Configuration</h2>{differ}{whole}</section>'


def report_page(folders: Sequence[RunFolder]) -> str:
    """The report of some runs as a page of HTML.

    Args:
        folders: one run or more; what a run lacks (readings, spectra, results) is said in its place.

    Raises:
        UserError: a folder without a run, or with files that are not ours.
    """
    runs = [Run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    ranks = [v for run in runs for name in ("erank_online", "erank_target") for v in run.metrics.get(name, [])]
    ceiling = max([v for v in ranks if math.isfinite(v)], default=10.0)
    each = list(enumerate(runs))
    sections: list[tuple[str, str, list[Panel]]] = [
        ("Rank of both branches along training", RANKS, [ranks_panel(run, i, ceiling) for i, run in each]),
        ("Singular values", SPECTRA, [spectra_panel(run, i) for i, run in each]),
        ("Measured filter", FILTERS, [filter_panel(run, i) for i, run in each]),
        ("Eigenspace alignment", ALIGNMENT, [alignment_panel(run, i) for i, run in each]),
    ]
    accuracy = {"kNN": ("knn", "knn", 100.0), "linear": ("linear", "muted", 100.0)}
    bars = [
        bars_panel(runs, "accuracy", "accuracy, %", accuracy),
        bars_panel(runs, "speed", "training speed, images/s", {"images/s": ("images_per_second", "target", 1.0)}),
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
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side"
    return string.Template((here / "page.html").read_text()).substitute(
        title=html.escape(f"rankgap: {title}"),
        about=f"rankgap {rankgap.__version__}. Everything here was read from the run folders; nothing is sent.",
        style=(here / "page.css").read_text(),
        body="\n".join(body),
        figures=json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        plotly=get_plotlyjs(),
        script=(here / "page.js").read_text(),
    )


def write_report(folders: Sequence[RunFolder], out: str | Path) -> None:
    """Write `report_page` to a file; its folder is made.

    Raises:
        UserError: as `report_page`; or no such file can be written.
    """
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {path} is a directory: name a file in it")
    page = report_page(folders)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}") from error
