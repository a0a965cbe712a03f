"""Where a run's readings go: `metrics.csv`, and those of Lightning's loggers that were asked for."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from rankgap.run.config import TrainConfig, loggers
from rankgap.run.folder import RunFolder, replace_file


class MetricsFile(Logger):
    """A Lightning logger that writes `metrics.csv`, one row a reading.

    Args:
        path: the file.
        step: keep the rows before this step, drop the rest (a resumed run writes them again).
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self.path, self._has_header = path, False
        self._begin(step)

    @rank_zero_only
    def _begin(self, step: int) -> None:
        kept: list[list[str]] = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            kept = [header, *(row for row in rows if row and row[0].isdigit() and int(row[0]) < step)]
        self._has_header = bool(kept)
        text = "".join(",".join(row) + "\n" for row in kept)
        replace_file(self.path, text.encode())

    @property
    def name(self) -> str:
        """Of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Of the logger; it has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row: the step, then the metrics in their order."""
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._has_header:
                writer.writerow(["step", *metrics])
                self._has_header = True
            writer.writerow([step, *(f"{value:.8g}" for value in metrics.values())])


# Lightning's own, each in the run folder unless its environment says otherwise.
_LOGGERS: dict[str, Callable[[RunFolder, str], Logger]] = {
    "tensorboard": lambda folder, title: TensorBoardLogger(folder.path, name=None, version="tensorboard"),
    "csv": lambda folder, title: CSVLogger(folder.path, name=None, version="csv"),
    "wandb": lambda folder, title: WandbLogger(name=title, save_dir=folder.path, project="rankgap"),
    "mlflow": lambda folder, title: MLFlowLogger(
        "rankgap",
        title,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.path.resolve()}/mlflow.db"),
    ),
}


def open_loggers(config: TrainConfig, *, step: int) -> list[Logger]:
    """The loggers of a run: its `metrics.csv` from a step on, then those of `--loggers`."""
    named = (_LOGGERS[name](config.folder, config.title) for name in loggers(config.loggers))
    return [MetricsFile(config.folder.metrics_file, step=step), *named]


def close_loggers(opened: Iterable[Logger]) -> None:
    """End what would go on: the process's next W&B run would be one with this."""
    for logger in opened:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
