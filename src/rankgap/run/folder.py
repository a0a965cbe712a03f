"""A run folder: what it contains, and how that is written and read.

config.yaml   metrics.csv   spectra.jsonl   results.json   scores.json   tensorboard/
checkpoints/last.ckpt   skipped_images.txt (where --on-bad-image skip left some out)
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from rankgap.data import Broken
from rankgap.data.names import shown
from rankgap.errors import UserError, unknown
from rankgap.run.reader import parse_yaml, plain, read, read_text
from rankgap.run.saved import SavedRun
from rankgap.spectra.pair import PairSpectrum
from rankgap.watch.verdict import Verdict

READ_COLUMNS = ("step", "epoch", "loss", "erank_online", "erank_target", "rank_difference")  # by everyone


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
            UserError: the folder is not empty, and either `overwrite` is not set or it holds no run.
        """
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
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)

    def write_config(self, saved: SavedRun) -> None:
        """Write `config.yaml`."""
        text = yaml.safe_dump(plain(saved), sort_keys=False, allow_unicode=True)
        self.config_file.write_text(text, encoding="utf-8")

    def write_skipped(self, images: Sequence[Broken]) -> None:
        """List the images that were left out in `skipped_images.txt`; without any, there is no file."""
        if images:
            text = "".join(f"{image}\n" for image in images)
            (self.path / "skipped_images.txt").write_text(text, encoding="utf-8")

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
        """The contents of `results.json`; empty if the run has none yet."""
        file = self.path / "results.json"
        if not file.is_file():
            return {}
        try:
            values = json.loads(read_text(file))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{file} should hold the results of a run by name, and holds {type(values).__name__}")
        return values

    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv` as numbers, without a half-written row; empty before the first reading."""
        if not self.metrics_file.is_file():
            return {}
        try:
            names, *rows = list(csv.reader(read_text(self.metrics_file).splitlines())) or [[]]
            whole = [[float(value) for value in row] for row in rows if len(row) == len(names) and all(row)]
        except (csv.Error, ValueError) as error:
            raise UserError(f"{self.metrics_file} is not a table of numbers: {error}") from error
        if missing := [name for name in READ_COLUMNS if whole and name not in names]:
            raise UserError(f"{self.metrics_file} lacks the columns {', '.join(missing)}")
        return {name: [row[i] for row in whole] for i, name in enumerate(names)}

    def last_reading(self) -> dict[str, float]:
        """The last row of the metrics; empty before the first reading."""
        return {name: values[-1] for name, values in self.metrics().items() if values}

    def verdict(self) -> Verdict | None:
        """The verdict in `results.json`; None if the run has none yet."""
        found = self.results().get("verdict")
        return None if found is None else read(Verdict, found, f"{self.path / 'results.json'}.verdict")

    def add_spectra(self, pair: PairSpectrum) -> None:
        """Append the spectra of a step to `spectra.jsonl`, by name and to five digits."""
        with self.spectra_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(pair.plain()) + "\n")

    def spectra(self) -> list[PairSpectrum]:
        """The spectra in `spectra.jsonl`, without a half-written line; empty if there are none yet."""
        if not self.spectra_file.is_file():
            return []
        whole = read_text(self.spectra_file).rpartition("\n")[0].splitlines()
        try:
            return [PairSpectrum.from_plain(json.loads(line)) for line in whole]
        except (json.JSONDecodeError, RecursionError, UserError) as error:
            raise UserError(f"{self.spectra_file} is not a list of spectra: {error}") from error

    def forget_spectra(self, step: int) -> None:
        """Drop the spectra from a step onwards; a resumed run writes them again."""
        if self.spectra_file.is_file():
            kept = [json.dumps(pair.plain()) + "\n" for pair in self.spectra() if (pair.step or 0) < step]
            replace_file(self.spectra_file, "".join(kept).encode())

    def save_checkpoint(self, state: Mapping[str, Any], *copies: str) -> None:
        """Write `checkpoints/last.ckpt`; a crash meanwhile leaves the old one intact.

        Args:
            state: contents of the checkpoint.
            copies: other names to save it under, without `.ckpt`.
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

    def load_checkpoint(self, path: Path | None = None) -> dict[str, Any]:
        """Load a checkpoint on the CPU, with `weights_only=True`, so that it cannot run code.

        Args:
            path: the checkpoint's file; the newest by default.

        Raises:
            UserError: the file does not exist, or is not a rankgap checkpoint.
        """
        path = path or self.checkpoint
        if not path.is_file():
            raise UserError(f"{self.path} has no checkpoint yet ({path})")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{path} cannot be loaded as weights: {str(error).splitlines()[0]}") from error
        except KeyError as error:  # raised by torch for a file that only begins like a pickle
            raise UserError(f"{path} is not a rankgap checkpoint") from error
        if not isinstance(state, dict) or not {"step", "model", "optimizer"} <= state.keys():
            raise UserError(f"{path} is not a rankgap checkpoint")
        return state


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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
