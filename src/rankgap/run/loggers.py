"""The loggers of a run: `metrics.csv`, and any of Lightning's loggers that are asked for."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rankgap.run.config import LoggerName, TrainConfig
from rankgap.run.folder import RunFolder, replace_file
from rankgap.run.processes import is_main_process


class MetricsFile(Logger):
    """A Lightning logger that writes `metrics.csv`, one row per reading.

    Args:
        path: the file.
        step: keep the rows before this step and drop the rest (a resumed run writes them again).
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self.path, self._has_header = path, False
        if is_main_process():
            self._begin(step)

    def _begin(self, step: int) -> None:
        kept: list[list[str]] = []
        if step and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            kept = [header, *(row for row in rows if row and row[0].isdigit() and int(row[0]) < step)]
        self._has_header = bool(kept)
        text = "".join(",".join(row) + "\n" for row in kept)
        replace_file(self.path, text.encode())

    @property
    def name(self) -> str:
        """The logger's name in Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """This logger has a single version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration has its own file."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row: the step, then the metrics in order."""
        if not is_main_process():
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._has_header:
                writer.writerow(["step", *metrics])
                self._has_header = True
            writer.writerow([step, *(f"{value:.8g}" for value in metrics.values())])


# Lightning's own loggers, which write to the run folder unless their environment variables say otherwise.
_LOGGERS: dict[LoggerName, Callable[[RunFolder, str], Logger]] = {
    "tensorboard": lambda folder, title: TensorBoardLogger(folder.path, name=None, version="tensorboard"),
    "csv": lambda folder, title: CSVLogger(folder.path, name=None, version="csv"),
    "wandb": lambda folder, title: WandbLogger(name=title, save_dir=folder.path, project="rankgap"),
    "mlflow": lambda folder, title: MLFlowLogger(
        "rankgap",
        title,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.path.resolve()}/mlflow.db"),
    ),
}


def open_loggers(config: TrainConfig, folder: RunFolder, *, step: int) -> list[Logger]:
    """The loggers of a run: its `metrics.csv` from a step on, then those of `--loggers`."""
    named = (_LOGGERS[name](folder, config.title) for name in config.loggers)
    return [MetricsFile(folder.metrics_file, step=step), *named]


def close_loggers(opened: Iterable[Logger]) -> None:
    """Finish the W&B run, which would otherwise stay open and take in the process's next run."""
    for logger in opened:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
