"""The loggers of a run: `metrics.csv`, and any of Lightning's loggers that are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rankgap.run.config import LoggerName, TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.history import READ_COLUMNS
from rankgap.run.processes import is_main_process


class MetricsFile(Logger):
    """A Lightning logger that writes `metrics.csv`, one row per reading.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

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
        """Append a reading: the step, then its numbers in order.

        Anything else is left out: Lightning hands every logger what any callback logs, and some libraries add
        callbacks as soon as they are installed.
        """
        row = {"step": float(step or 0), **metrics}
        if is_main_process() and row.keys() >= set(READ_COLUMNS):
            self.folder.add_metrics(row)


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


def open_loggers(config: TrainConfig, folder: RunFolder) -> list[Logger]:
    """The loggers of a run: its `metrics.csv`, then those of `--loggers`."""
    named = (_LOGGERS[name](folder, config.title) for name in config.loggers)
    return [MetricsFile(folder), *named]


def close_loggers(opened: Iterable[Logger]) -> None:
    """Finish the W&B run, which would otherwise stay open and take in the process's next run."""
    for logger in opened:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
