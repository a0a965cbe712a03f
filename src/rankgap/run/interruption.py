"""Signals that end a run: it stops after the current step, with a checkpoint to resume from.

A cluster or a container announces the end of a job by SIGTERM, SIGUSR1 or SIGHUP; Ctrl-C is SIGINT.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from rankgap.run.module import SelfSupervised

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Interruption(L.Callback):
    """Ends training after the current step, once a signal asks for it; a second signal acts as it did before.

    Attributes:
        signal: the number of the signal that asked; SIGINT's before any did.
    """

    def __init__(self) -> None:
        self.signal, self._asked = int(signal.SIGINT), False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over. Lightning has installed its own handlers by now, which save no checkpoint."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop at the end of a step if any process of the run was asked to."""
        assert isinstance(pl_module, SelfSupervised)
        if not pl_module.between_steps:
            return
        asked = trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        trainer.should_stop = trainer.should_stop or asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal, self._asked = number, True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@contextmanager
def stops_on_signals() -> Iterator[Interruption]:
    """A callback that ends training on a signal; afterwards the handlers are those from before."""
    interruption = Interruption()
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield interruption
    finally:
        if in_main:
            for number, handler in before.items():
                signal.signal(number, handler)
