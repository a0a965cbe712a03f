"""A run folder: what is in it, how it is written, and how it is read again.

config.yaml   metrics.csv   spectra.jsonl   results.json   scores.json   tensorboard/
checkpoints/last.ckpt
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from rankgap.errors import UserError
from rankgap.spectra.pair import PairSpectrum


def percent(value: float | None) -> str:
    """A share as percent, for a table."""
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


# What tables show of `results.json`: heading -> key, form.
RESULT_COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "kNN %": ("knn", percent),
    "linear %": ("linear", percent),
    "erank online": ("erank_online", _number),
    "erank target": ("erank_target", _number),
    "rank difference": ("rank_difference", _number),
    "erank features": ("erank_features", _number),
    "images/s": ("images_per_second", _count),
}


class Snapshot(NamedTuple):
    """Both branches' spectra at a step; see `pairs.PairSpectrum`.

    Attributes:
        step: of training.
        epoch: with its fraction.
        online: singular values of P (R,), descending.
        target: of T.
        alignment: of the eigenspaces (R',).
        filter: measured gains (R',), beside the first R' of `target`.
        transfer: likewise; empty in folders that were written before it was.
    """

    step: int
    epoch: float
    online: list[float]
    target: list[float]
    alignment: list[float]
    filter: list[float]
    transfer: Sequence[float] = ()


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

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.path.resolve().name

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
        """Refuse a folder that holds something, before any work is done for it.

        Raises:
            UserError: it holds something, and `overwrite` is not set, or it holds no run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not overwrite:
            raise UserError(f"{self.path} exists: choose another --out, go on with --resume, or --overwrite it")
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} holds no run, so it is not overwritten; choose another --out")

    def create(self) -> None:
        """Make the folder anew; what it held is gone (`check_free` comes first)."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`."""
        (self.path / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def config(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is no run folder: it has no config.yaml")
        try:
            values = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict) or "run" not in values or "recipe" not in values:
            raise UserError(f"{file} is not a run's configuration")
        return values

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`; what is not finite becomes null."""

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
        """What `results.json` holds; empty where the run has none yet."""
        file = self.path / "results.json"
        if not file.is_file():
            return {}
        try:
            values: dict[str, Any] = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        return values

    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv` as numbers, without a half-written row; empty where there are none yet."""
        if not self.metrics_file.is_file():
            return {}
        with self.metrics_file.open(newline="") as file:
            rows = list(csv.reader(file))
        names = rows[0] if rows else []
        whole = [row for row in rows[1:] if len(row) == len(names) and all(row)]
        return {name: [float(row[i]) for row in whole] for i, name in enumerate(names)}

    def last_reading(self) -> dict[str, float]:
        """The last row of the metrics; empty where there are none yet."""
        return {name: values[-1] for name, values in self.metrics().items() if values}

    def add_spectra(self, step: int, epoch: float, pair: PairSpectrum) -> None:
        """Append a snapshot to `spectra.jsonl`, with five digits a number."""
        columns = [[float(f"{value:.5g}") for value in column.tolist()] for column in pair[:5]]
        with self.spectra_file.open("a") as file:
            file.write(json.dumps(Snapshot(step, epoch, *columns)._asdict()) + "\n")

    def spectra(self) -> list[Snapshot]:
        """The snapshots in `spectra.jsonl`, without a half-written line; empty where there are none yet."""
        if not self.spectra_file.is_file():
            return []
        whole = self.spectra_file.read_text().rpartition("\n")[0].splitlines()
        try:
            return [Snapshot(**json.loads(line)) for line in whole]
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{self.spectra_file} is not a list of spectra: {error}") from error

    def forget_spectra(self, step: int) -> None:
        """Drop the snapshots from a step on: a resumed run writes them again."""
        if self.spectra_file.is_file():
            lines = self.spectra_file.read_text().splitlines(keepends=True)
            kept = [line for line, at in zip(lines, self.spectra(), strict=False) if at.step < step]
            replace_file(self.spectra_file, "".join(kept).encode())

    def save_checkpoint(self, state: Mapping[str, Any], *copies: str) -> None:
        """Write `checkpoints/last.ckpt`; a crash in between leaves the old one.

        Args:
            state: what it holds.
            copies: further names to keep it under, without `.ckpt`.
        """
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(dict(state), partial)
        for name in copies:
            copied = self.checkpoint.with_name(f"{name}.partial")
            shutil.copyfile(partial, copied)
            os.replace(copied, copied.with_suffix(".ckpt"))
        os.replace(partial, self.checkpoint)

    def checkpoints(self) -> list[Path]:
        """All that there are, `last.ckpt` at the end."""
        found = sorted(self.checkpoint.parent.glob("*.ckpt"))
        return sorted(found, key=lambda path: path == self.checkpoint)

    def load_checkpoint(self, path: Path | None = None) -> dict[str, Any]:
        """A checkpoint, on the CPU. It is read with `weights_only=True`: it can run no code.

        Args:
            path: of the file; the newest one by default.

        Raises:
            UserError: there is none, or the file is not one of ours.
        """
        path = path or self.checkpoint
        if not path.is_file():
            raise UserError(f"{self.path} has no checkpoint yet ({path})")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{path} cannot be loaded as weights: {str(error).splitlines()[0]}") from error
        except KeyError as error:  # what torch says of a file that begins like a pickle and is none
            raise UserError(f"{path} is not a rankgap checkpoint") from error
        if not isinstance(state, dict) or not {"step", "model", "optimizer"} <= state.keys():
            raise UserError(f"{path} is not a rankgap checkpoint")
        return state


def labels(folders: Sequence[RunFolder]) -> list[str]:
    """What to call runs beside each other: their titles, with as much of the path as tells them apart.

    Raises:
        UserError: a folder without a run, or one that is given twice.
    """
    for path, count in Counter(folder.path.resolve() for folder in folders).items():
        if count > 1:
            raise UserError(f"{path} is given {count} times")
    titles = [str(folder.config().get("title", folder.name)) for folder in folders]
    named = [f"{title} ({folder.name})" for title, folder in zip(titles, folders, strict=True)]
    whole = [f"{title} ({folder.path})" for title, folder in zip(titles, folders, strict=True)]
    counted, counted_names = Counter(titles), Counter(named)
    return [
        title if counted[title] == 1 else name if counted_names[name] == 1 else path
        for title, name, path in zip(titles, named, whole, strict=True)
    ]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
