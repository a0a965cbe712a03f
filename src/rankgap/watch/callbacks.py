"""The part shared by the callbacks of all trainers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from rankgap.errors import unknown
from rankgap.watch.doctor import Diagnosis, Thresholds
from rankgap.watch.monitor import RankMonitor

Action = Literal["warn", "stop"]

RANKS = ("erank_online", "erank_target", "rank_difference")  # the numbers of a reading that are logged


class Watcher:
    """Hooks the modules, hands out new readings and acts on a new diagnosis, for a callback of any trainer.

    Args:
        online: dotted name of the module whose output is P.
        target: dotted name of the module whose output is T.
        every: steps between two readings; a step is one backward pass.
        stacked: number of views in one output.
        thresholds: thresholds of the diagnosis.
        on_alarm: what to do when a new diagnosis is not healthy: "warn", "stop" (warn and end training), or a
            function that is called with it.

    Raises:
        UserError: an unknown action; at the start of training, a module that does not exist.
    """

    def __init__(
        self,
        online: str = "predictor",
        target: str = "projector",
        *,
        every: int = 10,
        stacked: int = 1,
        thresholds: Thresholds | None = None,
        on_alarm: Action | Callable[[Diagnosis], None] = "warn",
    ) -> None:
        if not callable(on_alarm) and on_alarm not in get_args(Action):
            raise unknown("action", on_alarm, get_args(Action))
        self.online, self.target, self.every, self.stacked = online, target, every, stacked
        self.thresholds, self.on_alarm = thresholds, on_alarm
        self.monitor: RankMonitor | None = None
        self._logged = 0

    def attach(self, model: nn.Module) -> None:
        """Hook the modules."""
        self._logged = 0
        self.monitor = RankMonitor(
            model, self.online, self.target, every=self.every, stacked=self.stacked, thresholds=self.thresholds
        ).__enter__()

    def detach(self) -> None:
        """Remove the hooks."""
        if self.monitor is not None:
            self.monitor.__exit__(None, None, None)

    def look(self) -> tuple[dict[str, float], bool]:
        """Call after each step; returns the ranks of a new reading, if any, and whether training should end."""
        assert self.monitor is not None
        history, logged = self.monitor.history, self._logged
        self._logged = len(history)
        ranks = {name: getattr(history[-1], name) for name in RANKS} if len(history) > logged else {}
        alarm = self.monitor.news()
        if alarm is None:
            return ranks, False
        if callable(self.on_alarm):
            self.on_alarm(alarm)
            return ranks, False
        warnings.warn(str(alarm), stacklevel=3)
        return ranks, self.on_alarm == "stop"
