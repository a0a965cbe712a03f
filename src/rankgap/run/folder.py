"""A run folder: what is in it, how it is written, and how it is read again.

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
from rankgap.errors import UserError, unknown
from rankgap.run.reader import parse_yaml, plain, read_text
from rankgap.run.saved import SavedRun
from rankgap.spectra.pair import PairSpectrum


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
    def config_file(self) -> Path:
        """All that was resolved, with a format version."""
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
        """Refuse a folder that holds something, before any work is done for it.

        Raises:
            UserError: it holds something, and `overwrite` is not set, or it holds no run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not overwrite:
            raise UserError(f"{self.path} exists: choose another --out, go on with --resume, or --overwrite it")
        if not self.config_file.is_file():
            raise UserError(f"{self.path} holds no run, so it is not overwritten; choose another --out")

    def create(self) -> None:
        """Make the folder anew; what it held is gone (`check_free` comes first)."""
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
        """What `config.yaml` holds.

        Raises:
            UserError: there is none, or it cannot be read; the key and what it should hold are named.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is no run folder: it has no config.yaml")
        where = str(self.config_file)
        return SavedRun.read(parse_yaml(read_text(self.config_file), where), where)

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
            values: dict[str, Any] = json.loads(read_text(file))
        except json.JSONDecodeError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        return values

    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv` as numbers, without a half-written row; empty where there are none yet."""
        if not self.metrics_file.is_file():
            return {}
        with self.metrics_file.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        names = rows[0] if rows else []
        whole = [row for row in rows[1:] if len(row) == len(names) and all(row)]
        return {name: [float(row[i]) for row in whole] for i, name in enumerate(names)}

    def last_reading(self) -> dict[str, float]:
        """The last row of the metrics; empty where there are none yet."""
        return {name: values[-1] for name, values in self.metrics().items() if values}

    def add_spectra(self, pair: PairSpectrum) -> None:
        """Append the spectra of a step to `spectra.jsonl`, by name and with five digits a number."""
        with self.spectra_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(pair.plain()) + "\n")

    def spectra(self) -> list[PairSpectrum]:
        """The spectra in `spectra.jsonl`, without a half-written line; empty where there are none yet."""
        if not self.spectra_file.is_file():
            return []
        whole = read_text(self.spectra_file).rpartition("\n")[0].splitlines()
        try:
            return [PairSpectrum.from_plain(json.loads(line)) for line in whole]
        except (json.JSONDecodeError, UserError) as error:
            raise UserError(f"{self.spectra_file} is not a list of spectra: {error}") from error

    def forget_spectra(self, step: int) -> None:
        """Drop the spectra from a step on: a resumed run writes them again."""
        if self.spectra_file.is_file():
            kept = [json.dumps(pair.plain()) + "\n" for pair in self.spectra() if (pair.step or 0) < step]
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
        except KeyError as error:  # torch, of a file that only begins like a pickle
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
    titles = [folder.saved().title for folder in folders]
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
