"""The monitor as a Lightning callback: two lines in any training script."""

from __future__ import annotations

from typing import Any

import lightning as L

from rankgap.watch.callbacks import Watcher


class RankCallback(Watcher, L.Callback):
    """Watches two modules of a `LightningModule`, logs their ranks, and acts on a collapse.

    It takes the arguments of `Watcher` and of `RankMonitor`. It logs `erank_online`, `erank_target` and
    `rank_difference` at each reading. A step is a backward pass: one for each batch that is accumulated.

    Example:
        >>> callback = RankCallback(online="predictor", target="projector", on_alarm="stop")
        >>> trainer = L.Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hook the modules."""
        self.attach(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn the length of the run; earlier, asking for it would load the data."""
        self.expect(trainer.estimated_stepping_batches * trainer.accumulate_grad_batches)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log a new reading, and act on a new diagnosis."""
        ranks, ends = self.look()
        for name, value in ranks.items():
            pl_module.log(name, value)
        trainer.should_stop = trainer.should_stop or ends

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks, and judge the run."""
        self.detach()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self.release()
