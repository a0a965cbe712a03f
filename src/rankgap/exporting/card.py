"""The model card, README.md: what the encoder is, how it is loaded, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from rankgap.data.names import shown, without_folders
from rankgap.exporting.format import Format
from rankgap.exporting.source import Exported
from rankgap.run.saved import library_versions
from rankgap.watch.verdict import Verdict

_TIMM = """\
`timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))` makes the same view of a PIL image of
8 bits, up to rounding: it rounds after each axis of the resize, and its resize sees past the crop's edge."""
_NOT_TIMM = "timm's own transforms do not fit such images: use `preprocessing.py`."


def warnings_of(exported: Exported, verdict: Verdict | None, ranks: Mapping[str, float]) -> list[str]:
    """Why this encoder may be of little use, one sentence each, with its ranks."""
    said = []
    if not exported.step:
        said.append("the encoder is untrained: 0 steps")
    elif exported.saved.run.fast_dev_run:
        said.append(f"the encoder comes from a dry run of {exported.step} steps")
    if verdict is None:
        said.append("the run has no verdict yet: it did not reach its end")
    elif verdict.kind != "healthy":
        said.append(f"the run is {verdict}")
    if said:
        said[-1] = f"{said[-1].rstrip('.')}. {_ranks(exported, ranks)}"
    return said


def _ranks(exported: Exported, ranks: Mapping[str, float]) -> str:
    if not ranks:
        return "No rank was read before this checkpoint."
    return (
        f"Effective rank at the last reading, after {ranks['step']:,.0f} of {exported.saved.work.steps:,} steps: "
        f"{ranks['erank_online']:.1f} online, {ranks['erank_target']:.1f} target."
    )


def card(
    exported: Exported,
    form: Format,
    files: Mapping[str, str],
    *,
    warnings: list[str],
    notes: list[str],
    ranks: Mapping[str, float],
    verdict: Verdict | None,
) -> str:
    """The text of README.md.

    Args:
        exported: the encoder.
        form: the format.
        files: what each file of the folder is, by name.
        warnings: why it may be of little use.
        notes: what was found when it was exported.
        ranks: the last reading before the checkpoint; empty without one.
        verdict: the run's verdict, if it has one.
    """
    kept, run = exported.saved.model, exported.saved.run
    front: dict[str, Any] = {
        "license": exported.licence,
        "library_name": form.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["rankgap", "self-supervised-learning", run.method, *form.tags],
    }
    if run.data.startswith("hf:") and without_folders(run.data) == run.data:
        front["datasets"] = [run.data.removeprefix("hf:")]
    deep = kept.levels is not None or kept.channels not in (1, 3)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {shown(exported.folder.name)}: {exported.architecture.name}",
        *(f"> **Warning.** {shown(text[:1].upper() + text[1:])}" for text in warnings),
        f"An image encoder trained without labels by rankgap, as {form.about}: {kept.channels}-channel images -> "
        f"{exported.encoder.encoder.features} features.",
        "## Load it",
        "```python\n" + "\n".join(form.loads(exported)) + "\n```",
        *(f"{text[:1].upper()}{text[1:]}." for text in notes),
        "## Preprocessing",
        _table(_preprocessing(exported)),
        *([_NOT_TIMM if deep else _TIMM] if form.library == "timm" else []),
        "## Training",
        _table(_training(exported)),
        "## Ranks",
        _rank_text(exported, ranks, verdict),
        "## Scores",
        _scores(exported),
        "## Files",
        "\n".join(f"* `{name}`: {what}" for name, what in sorted(files.items())),
        _versions(exported.saved.versions),
    ]
    return "\n\n".join(parts) + "\n"


def _versions(trained: Mapping[str, str]) -> str:
    def listed(versions: Mapping[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items())

    now = library_versions()
    more = "" if now == trained else f" Exported with {listed(now)}."
    return shown(f"Trained with {listed(trained)}.{more}")


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    return shown(str(value)).replace("|", "\\|")


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _preprocessing(exported: Exported) -> dict[str, str]:
    kept = exported.saved.model
    where = "inside the graph, which takes images" if exported.inside else "before the encoder, which takes views"
    rows = {
        "where": where,
        "view": f"{kept.size} x {kept.size} px",
        "crop": "the central square"
        + ("" if kept.centre == 1 else f" of {kept.centre:.4g} of the shorter side, cut out after the resize"),
        "interpolation": "bicubic, antialiased",
        "mean": _numbers(kept.mean),
        "standard deviation": _numbers(kept.std),
    }
    levels = kept.levels
    if levels is None:
        return rows | {"values": "8 bits, divided by 255"}
    ranges = "; ".join(f"{low:.6g} to {high:.6g}" for low, high in zip(levels.low, levels.high, strict=True))
    return rows | {"values": f"{levels.depth}: {ranges} become 0 to 255, rounded, then divided by 255"}


def _training(exported: Exported) -> dict[str, str]:
    saved = exported.saved
    run, work = saved.run, saved.work
    row = saved.method()
    rows = {
        "method": saved.title,
        "source": row.source,
        "architecture": exported.architecture.about,
        "branch": exported.branch + (", an EMA teacher" if exported.branch == "target" and row.ema else ""),
        "data": f"{without_folders(run.data)}, {work.images:,} images",
        "checkpoint": f"{exported.checkpoint}, step {exported.step:,} of {work.steps:,}",
        "schedule": f"{work.epochs:,} epochs of {work.steps_per_epoch:,} steps, batches of {work.batch_size:,}",
        "start": "random weights" if run.init is None else f"pretrained weights, {without_folders(run.init)}",
        "seed": str(run.seed),
    }
    return rows | ({"known to fail": "; ".join(saved.warnings)} if saved.warnings else {})


def _rank_text(exported: Exported, ranks: Mapping[str, float], verdict: Verdict | None) -> str:
    lines = [
        "The effective rank is the exponential of the entropy of the eigenvalues of one batch's uncentred "
        "correlation, of the projected outputs that the loss compares."
    ]
    if ranks:
        difference = ranks["rank_difference"]
        lines.append(f"{_ranks(exported, ranks)} Rank difference: {difference:+.1f}.")
    else:
        lines.append(_ranks(exported, ranks))
    at_end = "" if exported.at_end else " It is of the whole run, not of this checkpoint."
    lines.append(f"Verdict: {'none' if verdict is None else verdict}".rstrip(".") + f".{at_end}")
    return "\n\n".join(shown(line) for line in lines)


def _scores(exported: Exported) -> str:
    results = exported.folder.results()
    found = results.get("target_branch", {}) if exported.branch == "target" else results
    protocol = found.get("protocol", {})
    rows = list(_rows(found, protocol))
    if not rows:
        return f"None was measured for the {exported.branch} branch."
    table = ["| score | set | value | protocol |", "|---|---|--:|---|"]
    table += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    if not exported.at_end:
        table += ["", "They are of the run's last checkpoint, not of this one."]
    return "\n".join(table)


def _rows(found: Mapping[str, Any], protocol: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Each score with its set, value and protocol."""
    for name, scores in found.get("sets", {}).items():
        for score, value in scores.items():
            if score != "images" and value is not None:
                place = f"{name}, {scores.get('images', 0):,} images"
                yield score, place, f"{100 * value:.1f}%", protocol.get(score.removesuffix("_top5"), "")
    for score in ("erank_features", "rankme_features"):
        if found.get(score) is not None:
            yield score, "training images", f"{found[score]:.1f}", protocol.get(score, "")
