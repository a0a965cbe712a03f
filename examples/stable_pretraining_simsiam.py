"""Watch stable-pretraining's SimSiam in its own Module and DataModule, with Lightning's Trainer.

python -m examples.stable_pretraining_simsiam
"""

from __future__ import annotations

from typing import Any

import lightning as L
import stable_pretraining as spt
import torch
import torchvision
from stable_pretraining.methods.simsiam import SimSiam
from torch import Tensor, nn

import rankgap as rg
from examples.digits import Digits, named_crops


def forward(self: Any, batch: dict[str, Tensor], stage: str) -> dict[str, Tensor]:
    """The forward function that stable-pretraining's Module takes: a batch by name -> loss and embedding."""
    out = self.method(batch["view1"], batch["view2"])
    return {"loss": out.loss, "embedding": out.embedding}


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps; a collapse would stop the training."""
    L.seed_everything(0, verbose=False)
    digits = Digits(named_crops)
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten())
    module = spt.Module(
        method=SimSiam(backbone, projector_dim=128, predictor_hidden_dim=64),
        forward=forward,
        optim={"optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}, "interval": "step"},
    )
    data = spt.data.DataModule(train=digits.batches(64))
    watch = rg.RankCallback(online="method.predictor", target="method.projector", every=5, on_alarm="stop")
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    assert watch.monitor is not None
    print(f"rank difference {watch.monitor.compute().rank_difference:+.2f}, {watch.monitor.diagnosis}")
    return watch.monitor


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
