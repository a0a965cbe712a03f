"""The part shared by the callbacks of all trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

from rankgap.errors import unknown
from rankgap.watch.doctor import Diagnosis, alarms
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading
from rankgap.watch.safety import warn

Action = Literal["warn", "stop"]

RANKS = ("erank_online", "erank_target", "rank_difference")  # the numbers of a reading that are logged


class Watcher:
    """Hooks the modules, hands out new readings and acts on a new diagnosis, for a callback of any trainer.

    Args:
        online: the module whose output is P, or its dotted name.
        target: the same for T.
        on_alarm: what to do when a new diagnosis is not healthy: "warn", "stop" (warn and end training), or a
            function that is called with it.
        options: further arguments of `RankMonitor`: `every`, `layout`, `then` and so on.

    Attributes:
        monitor: the `RankMonitor` of the newest training, or of the one to come.

    Raises:
        UserError: an unknown action or option; at the start of training, a module that does not exist.
    """

    def __init__(
        self,
        online: str | nn.Module = "predictor",
        target: str | nn.Module = "projector",
        *,
        on_alarm: Action | Callable[[Diagnosis], None] = "warn",
        **options: Any,
    ) -> None:
        if not callable(on_alarm) and on_alarm not in get_args(Action):
            raise unknown("action", on_alarm, get_args(Action))
        self.on_alarm = on_alarm
        self._branches, self._options = (online, target), options
        self.monitor = RankMonitor(**options)  # so that a wrong option is an error at once
        self._logged: Reading | None = None

    def attach(self, model: nn.Module) -> None:
        """Hook the modules; those of a training that an error ended are released."""
        self.release()
        self._logged = None
        self.monitor = RankMonitor(model, *self._branches, **self._options).__enter__()

    def expect(self, steps: float) -> None:
        """Say how long the run is, in steps, unless the user did; infinite or negative if nobody knows."""
        if "steps" not in self._options and 0 < steps < math.inf:
            self.monitor.cadence.steps = self.monitor.doctor.steps = int(steps)

    def detach(self) -> None:
        """Remove the hooks, and warn of a run that ends collapsed too early for an alarm."""
        history, doctor = self.monitor.history, self.monitor.doctor
        if history and not alarms(history, doctor.thresholds, doctor.steps):
            verdict = self.monitor.verdict()
            if verdict.kind != "healthy":
                warn(str(verdict))
        self.release()

    def release(self) -> None:
        """Remove the hooks."""
        self.monitor.__exit__(None, None, None)

    def look(self) -> tuple[dict[str, float], bool]:
        """Call after each step; returns the ranks of a new reading, if any, and whether training should end."""
        newest = self.monitor.history[-1] if self.monitor.history else None
        ranks = {name: getattr(newest, name) for name in RANKS} if newest is not self._logged else {}
        self._logged = newest
        alarm = self.monitor.news()
        if alarm is None:
            return ranks, False
        if callable(self.on_alarm):
            self.on_alarm(alarm)
            return ranks, False
        warn(str(alarm))
        return ranks, self.on_alarm == "stop"
