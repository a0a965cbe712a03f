"""Watch any two-branch model: readings of both branches, their diagnosis, and a monitor for any loop."""

from rankgap.watch.doctor import Diagnosis, Doctor, Kind, Thresholds, alarms
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading, read, readings

__all__ = [
    "Diagnosis",
    "Doctor",
    "Kind",
    "RankMonitor",
    "Reading",
    "Thresholds",
    "alarms",
    "read",
    "readings",
]
