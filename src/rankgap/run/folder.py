"""A run folder: what it contains, and how that is written and read.

config.yaml   metrics.csv   spectra.jsonl   results.json   scores.json   tensorboard/
checkpoints/last.ckpt   heartbeat.json   skipped_images.txt (where --on-bad-image skip left some out)
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rankgap.data import Broken
from rankgap.data.names import shown
from rankgap.errors import UserError, unknown
from rankgap.notebook import rank_curves, summary
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.files import check_writable, replace_copy, replace_file, replacing, writing
from rankgap.run.reader import parse_yaml, plain, read, read_json, read_text, write_yaml
from rankgap.run.results import Results
from rankgap.run.saved import SavedRun
from rankgap.spectra.pair import PairSpectrum
from rankgap.watch.reading import readings
from rankgap.watch.verdict import Verdict

_LONGEST_HEAD = 2**12  # characters; a device has no end of line
MOST_STEPS = 2**53  # float64 holds whole numbers exactly up to here
READ_COLUMNS = ("step", "epoch", "loss", "erank_online", "erank_target", "rank_difference")  # by everyone


class History(NamedTuple):
    """The readings of a run up to a step.

    Attributes:
        metrics: the columns of `metrics.csv`.
        spectra: the records of `spectra.jsonl`.
    """

    metrics: dict[str, list[float]]
    spectra: list[PairSpectrum]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run.

    Args:
        path: the folder.

    Example:
        >>> RunFolder(Path("runs/a")).checkpoint.as_posix()
        'runs/a/checkpoints/last.ckpt'
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's name, as text."""
        return shown(self.path.resolve().name)

    @property
    def config_file(self) -> Path:
        """The resolved configuration, with a format version."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def metrics_file(self) -> Path:
        """One row for each reading of the ranks."""
        return self.path / "metrics.csv"

    @property
    def spectra_file(self) -> Path:
        """One line of JSON for each snapshot of the spectra."""
        return self.path / "spectra.jsonl"

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder that is not empty, before any work is done for it.

        Raises:
            UserError: the folder is not empty, and either `overwrite` is not set or it holds no run; or it cannot
                be written.
        """
        self._check_replaceable(overwrite)
        check_writable(self.path)

    def _check_replaceable(self, overwrite: bool) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not overwrite:
            raise UserError(
                f"{self.path} exists: use another --out, continue it with --resume, or replace it with --overwrite"
            )
        if not self.config_file.is_file():
            raise UserError(f"{self.path} holds no run, so it is not overwritten: choose another --out")

    def create(self) -> None:
        """Create the folder, and delete what it held (call `check_free` first)."""
        with writing(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)

    def write_config(self, saved: SavedRun) -> None:
        """Write `config.yaml`."""
        replace_file(self.config_file, write_yaml(plain(saved)).encode())

    def write_skipped(self, images: Sequence[Broken]) -> None:
        """List the images that were left out in `skipped_images.txt`; without any, there is no file."""
        if images:
            text = "".join(f"{image}\n" for image in images)
            replace_file(self.path / "skipped_images.txt", text.encode())

    def saved(self) -> SavedRun:
        """The contents of `config.yaml`.

        Raises:
            UserError: the file is missing or cannot be read; the message names the key and what it should hold.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml")
        where = str(self.config_file)
        return SavedRun.read(parse_yaml(read_text(self.config_file), where), where)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`; numbers that are not finite become null."""

        def clean(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {str(k): clean(v) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return [clean(v) for v in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        replace_file(self.path / "results.json", json.dumps(clean(results), indent=2).encode() + b"\n")

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write `scores.json`."""
        replace_file(self.path / "scores.json", json.dumps(scores, indent=2).encode() + b"\n")

    def results(self) -> dict[str, Any]:
        """The contents of `results.json`; empty if the run has none yet.

        Raises:
            UserError: the file holds something else; the message names the key and what it should hold.
        """
        file = self.path / "results.json"
        if not file.is_file():
            return {}
        values = read_json(file)
        if not isinstance(values, dict):
            raise UserError(f"{file} should hold the results of a run by name, got {type(values).__name__}")
        found = dict(read(Results, values, str(file)))
        if "verdict" in found:
            read(Verdict, found["verdict"], f"{file}.verdict")
        return found

    def start(self) -> dict[str, Any]:
        """The part of `results.json` on the frozen start; empty if the run began with random weights."""
        return {name: scores for name, scores in self.results().items() if name == "start"}

    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv` as numbers, NaN where one is not finite; empty before the first reading.

        A last row that is only half written is left out.

        Raises:
            UserError: the file holds something else; the message names what is wrong.
        """
        if not self.metrics_file.is_file():
            return {}
        whole = read_text(self.metrics_file).rpartition("\n")[0].splitlines()
        names = whole[0].split(",") if whole else []
        try:
            rows = [[_number(value) for value in line.split(",")] for line in whole[1:]]
        except ValueError as error:
            raise UserError(f"{self.metrics_file} is not a table of numbers: {error}") from error
        if missing := [name for name in READ_COLUMNS if rows and name not in names]:
            raise UserError(f"{self.metrics_file} lacks the columns {', '.join(missing)}")
        if ragged := next((i for i, row in enumerate(rows, start=2) if len(row) != len(names)), None):
            raise UserError(f"{self.metrics_file} has the wrong number of values in line {ragged}: delete it")
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        steps = columns.get("step", [])
        if len(columns) < len(names) or not _are_steps(steps):
            raise UserError(f"{self.metrics_file} should have unique column names, and steps that increase from 0")
        return columns

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append a row to `metrics.csv`: a reading's numbers, the step first. The first row names the columns.

        Columns that an earlier version of rankgap has begun stay as they are.
        """
        with writing(self.metrics_file), self.metrics_file.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if head := file.readline(_LONGEST_HEAD).rstrip("\n"):
                file.write(_row({name: metrics.get(name, math.nan) for name in head.split(",")}))
            else:
                file.write(",".join(metrics) + "\n" + _row(metrics))

    def last_reading(self) -> dict[str, float]:
        """The last row of the metrics; empty before the first reading."""
        return {name: values[-1] for name, values in self.metrics().items() if values}

    def verdict(self) -> Verdict | None:
        """The verdict in `results.json`; None if the run has none yet."""
        found = self.results().get("verdict")
        return None if found is None else read(Verdict, found, f"{self.path / 'results.json'}.verdict")

    def add_spectra(self, pair: PairSpectrum) -> None:
        """Append the spectra of a step to `spectra.jsonl`, by name and to five digits."""
        with writing(self.spectra_file), self.spectra_file.open("a", encoding="utf-8") as file:
            file.write(_line(pair))

    def spectra(self) -> list[PairSpectrum]:
        """The records in the complete lines of `spectra.jsonl`; an empty list if there is no such file."""
        if not self.spectra_file.is_file():
            return []
        whole = read_text(self.spectra_file).rpartition("\n")[0].splitlines()
        try:
            found = [PairSpectrum.from_plain(json.loads(line)) for line in whole]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.spectra_file} is not a list of spectra: {error}") from error
        if not _are_steps([math.nan if pair.step is None else pair.step for pair in found]):
            raise UserError(f"{self.spectra_file} should hold spectra at steps that increase from 0")
        return found

    def history(self, step: int) -> History:
        """The readings and spectra before a step."""
        metrics, spectra = self.metrics(), self.spectra()
        count = bisect.bisect_left(metrics.get("step", []), step)
        return History(
            {name: values[:count] for name, values in metrics.items()},
            [pair for pair in spectra if pair.step is not None and pair.step < step],
        )

    def rewind(self, history: History) -> None:
        """Reduce `metrics.csv` and `spectra.jsonl` to a history, from which a resumed run continues."""
        names = list(history.metrics)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*history.metrics.values(), strict=True)]
        head = [",".join(names) + "\n"] if rows else []
        replace_file(self.metrics_file, "".join([*head, *map(_row, rows)]).encode())
        replace_file(self.spectra_file, "".join(map(_line, history.spectra)).encode())

    def _repr_html_(self) -> str:
        """The run's state, verdict and accuracies, and the curve of both ranks, as a notebook shows them."""
        try:
            saved, metrics, results, verdict = self.saved(), self.metrics(), self.results(), self.verdict()
        except UserError as error:
            return summary(self.name, {"cannot be shown": str(error)})
        steps, scores = metrics.get("step", []), {"kNN": results.get("knn"), "linear": results.get("linear")}
        done = f"{int(steps[-1]) + 1:,}" if steps else "no reading yet, none"
        facts = {
            "folder": shown(str(self.path)),
            "steps": f"{saved.work.steps:,}" if "seconds" in results else f"{done} of {saved.work.steps:,}",
            "verdict": "" if verdict is None else str(verdict),
            "accuracy": ", ".join(f"{name} {100 * x:.1f}%" for name, x in scores.items() if x is not None),
        }
        return summary(shown(saved.title), facts, rank_curves(readings(metrics)))

    def save_checkpoint(self, state: Checkpoint, *copies: str) -> None:
        """Write `checkpoints/last.ckpt`; a crash meanwhile leaves the old one intact.

        Args:
            state: the checkpoint.
            copies: other names to save it under, without `.ckpt`.
        """
        with writing(self.checkpoint.parent):
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.checkpoint) as file:
            torch.save(state.plain(), file)
        for name in copies:
            replace_copy(self.checkpoint, self.checkpoint.with_name(f"{name}.ckpt"))

    def checkpoints(self) -> list[Path]:
        """All checkpoints, with `last.ckpt` at the end."""
        found = sorted(self.checkpoint.parent.glob("*.ckpt"))
        return sorted(found, key=lambda path: path == self.checkpoint)

    def checkpoint_called(self, name: str) -> Path:
        """A checkpoint by its name: last, best, epoch-0010.

        Raises:
            UserError: the run has kept no checkpoint of that name.
        """
        found = {path.stem: path for path in self.checkpoints()}
        if found and name not in found:
            raise unknown("checkpoint", name, found)
        return found.get(name, self.checkpoint)

    def load_checkpoint(self, path: Path | None = None) -> Checkpoint:
        """Read a checkpoint.

        Args:
            path: the checkpoint's file; the newest by default.

        Raises:
            UserError: the file does not exist, or as `Checkpoint.read`.
        """
        path = path or self.checkpoint
        if not path.is_file():
            raise UserError(f"{self.path} has no checkpoint yet ({path})")
        return Checkpoint.read(path)


def labels(folders: Sequence[RunFolder]) -> list[str]:
    """Labels for runs side by side: their titles, with as much of the path as tells them apart.

    Raises:
        UserError: a folder that holds no run, or is given twice.
    """
    for path, count in Counter(folder.path.resolve() for folder in folders).items():
        if count > 1:
            raise UserError(f"{path} is given {count} times: give each run once")
    titles = [folder.saved().title for folder in folders]
    named = [f"{title} ({folder.name})" for title, folder in zip(titles, folders, strict=True)]
    whole = [f"{title} ({shown(str(folder.path))})" for title, folder in zip(titles, folders, strict=True)]
    counted, counted_names = Counter(titles), Counter(named)
    return [
        title if counted[title] == 1 else name if counted_names[name] == 1 else path
        for title, name, path in zip(titles, named, whole, strict=True)
    ]


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.nan


def _row(metrics: Mapping[str, float]) -> str:
    return ",".join(f"{value:.8g}" if name != "step" else f"{value:.0f}" for name, value in metrics.items()) + "\n"


def _line(pair: PairSpectrum) -> str:
    return json.dumps(pair.plain()) + "\n"


def _are_steps(numbers: Sequence[float]) -> bool:
    """Whether numbers are steps: whole numbers from 0 that increase."""
    whole = all(0 <= number < MOST_STEPS and number == int(number) for number in numbers)
    return whole and all(a < b for a, b in itertools.pairwise(numbers))
