"""The parts of a run that a report reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rankgap.notebook import thin
from rankgap.run.folder import RunFolder
from rankgap.run.saved import SavedRun
from rankgap.spectra.pair import PairSpectrum
from rankgap.watch.doctor import Diagnosis, Doctor, alarms
from rankgap.watch.reading import readings
from rankgap.watch.verdict import Verdict

FRAMES = 24  # the most records of spectra to show for a run


@dataclass(frozen=True)
class Run:
    """The parts of a run that a report shows; each is read once, and may be missing.

    Args:
        folder: the run folder.
        label: a name that no other run on the page has.
    """

    folder: RunFolder
    label: str

    @cached_property
    def saved(self) -> SavedRun:
        """The contents of `config.yaml`."""
        return self.folder.saved()

    @cached_property
    def metrics(self) -> dict[str, list[float]]:
        """The columns of `metrics.csv`; empty before the first reading."""
        return self.folder.metrics()

    @cached_property
    def spectra(self) -> list[PairSpectrum]:
        """The records during training, thinned out."""
        found = self.folder.spectra()
        return [found[i] for i in thin(len(found), FRAMES)]

    @cached_property
    def results(self) -> dict[str, Any]:
        """The contents of `results.json`, or the newest reading of a run that has no results yet."""
        return self.folder.last_reading() | self.folder.results()

    @cached_property
    def alarms(self) -> list[Diagnosis]:
        """The alarms that the run's readings raise."""
        return alarms(readings(self.metrics), steps=self.steps)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """The diagnosis after the newest reading; None before the first."""
        doctor, newest = Doctor(steps=self.steps), None
        for reading in readings(self.metrics):
            newest = doctor(reading)
        return newest

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict at the end of training; None if the run has none."""
        return self.folder.verdict()

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.saved.work.steps

    @cached_property
    def done(self) -> bool:
        """Whether the run has finished."""
        return "seconds" in self.folder.results()  # `evaluate` writes results of an unfinished run without it

    @property
    def state(self) -> str:
        """How far the run has come."""
        if self.done:
            return "done"
        done = int(self.metrics["step"][-1]) + 1 if self.metrics.get("step") else 0
        return f"{done:,} of {self.steps:,} steps"
