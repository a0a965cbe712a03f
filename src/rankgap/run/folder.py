"""A run folder: what it contains. How a file is written and read stands with the type of its contents.

config.yaml   metrics.csv   spectra.jsonl   results.json   scores.json   tensorboard/
checkpoints/last.ckpt   heartbeat.json   skipped_images.txt (where --on-bad-image skip left some out)
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankgap.data import Broken
from rankgap.data.names import shown
from rankgap.errors import UserError, unknown
from rankgap.notebook import rank_curves, summary
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.files import check_writable, replace_copy, replace_file, replacing, writing
from rankgap.run.history import History, add_metrics, add_spectra, read_metrics, read_spectra
from rankgap.run.reader import parse_yaml, plain, read, read_text, write_yaml
from rankgap.run.results import read_results, write_results
from rankgap.run.saved import SavedRun
from rankgap.spectra.pair import PairSpectrum
from rankgap.watch.reading import readings
from rankgap.watch.verdict import Verdict


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

    @property
    def results_file(self) -> Path:
        """The results, by name."""
        return self.path / "results.json"

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
        write_results(self.results_file, results)

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write `scores.json`."""
        replace_file(self.path / "scores.json", json.dumps(scores, indent=2).encode() + b"\n")

    def results(self) -> dict[str, Any]:
        """The contents of `results.json`, as `read_results`; empty if the run has none yet."""
        return read_results(self.results_file)

    def start(self) -> dict[str, Any]:
        """The part of `results.json` on the frozen start; empty if the run began with random weights."""
        return {name: scores for name, scores in self.results().items() if name == "start"}

    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv`, as `read_metrics`; empty before the first reading."""
        return read_metrics(self.metrics_file)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append a row to `metrics.csv`."""
        add_metrics(self.metrics_file, metrics)

    def last_reading(self) -> dict[str, float]:
        """The last row of the metrics; empty before the first reading."""
        return {name: values[-1] for name, values in self.metrics().items() if values}

    def verdict(self) -> Verdict | None:
        """The verdict in `results.json`; None if the run has none yet."""
        found = self.results().get("verdict")
        return None if found is None else read(Verdict, found, f"{self.results_file}.verdict")

    def add_spectra(self, pair: PairSpectrum) -> None:
        """Append the spectra of a step to `spectra.jsonl`."""
        add_spectra(self.spectra_file, pair)

    def spectra(self) -> list[PairSpectrum]:
        """The records of `spectra.jsonl`, as `read_spectra`; empty before the first."""
        return read_spectra(self.spectra_file)

    def history(self, step: int) -> History:
        """The readings and spectra before a step."""
        return History(self.metrics(), self.spectra()).before(step)

    def rewind(self, history: History) -> None:
        """Reduce `metrics.csv` and `spectra.jsonl` to a history, from which a resumed run continues."""
        history.write(self.metrics_file, self.spectra_file)

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
