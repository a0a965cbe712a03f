"""Watch a LightningModule with one callback in its Trainer.

python -m examples.lightning_callback
"""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

import rankgap as rg
from examples.digits import Digits, two_crops
from examples.plain_pytorch import SimSiam


class Lit(L.LightningModule):
    """The SimSiam of `plain_pytorch` as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SimSiam()

    def training_step(self, views: list[Tensor]) -> Tensor:
        """The loss of two views."""
        (p1, z1), (p2, z2) = self.model(views[0]), self.model(views[1])
        return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps; a collapse would stop the training."""
    L.seed_everything(0, verbose=False)
    loader = Digits(two_crops).batches()
    watch = rg.RankCallback(online="model.predictor", target="model.projector", every=10, on_alarm="stop")
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[watch], logger=False, enable_checkpointing=False
    )
    trainer.fit(Lit(), loader)
    assert watch.monitor is not None
    print(f"rank difference {watch.monitor.compute().rank_difference:+.2f}, {watch.monitor.diagnosis}")
    return watch.monitor


if __name__ == "__main__":
    main()
