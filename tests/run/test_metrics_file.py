"""What stands in a run's metrics.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankgap.run.folder import RunFolder
from rankgap.run.history import READ_COLUMNS
from rankgap.run.loggers import MetricsFile


def test_columns_that_an_earlier_version_began_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text(f"{','.join(READ_COLUMNS)},old\n0,0,1.5,2,3,1,7\n")
    folder.add_metrics({"new": 5.0} | dict.fromkeys(READ_COLUMNS, 1.0) | {"loss": 1.25})
    found = folder.metrics()
    assert (found["step"], found["loss"]) == ([0, 1], [1.5, 1.25])
    assert np.isnan(found["old"][1])


def test_what_other_callbacks_log_is_no_reading(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logger = MetricsFile(folder)
    reading = dict.fromkeys(READ_COLUMNS[1:], 1.0)
    logger.log_metrics(reading, step=3)
    logger.log_metrics({"epoch": 0.0, "hardware/memory": 7.0}, step=3)
    logger.log_metrics(reading | {"extra": 2.0}, step=4)
    assert folder.metrics()["step"] == [3, 4]
