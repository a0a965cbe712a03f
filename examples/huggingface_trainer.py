"""Watch a model that Hugging Face's Trainer trains.

python -m examples.huggingface_trainer
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import rankgap as rg
from examples.digits import Digits, named_crops
from examples.plain_pytorch import SimSiam
from rankgap.watch.huggingface import RankTrainerCallback


class TwoViews(nn.Module):
    """SimSiam as the Trainer expects it: keyword arguments in, a dictionary with the loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SimSiam()

    def forward(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """Two views (B, 3, 32, 32) -> the loss."""
        (p1, z1), (p2, z2) = self.model(view1), self.model(view2)
        return {"loss": -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2}


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps; a collapse would stop the training."""
    torch.manual_seed(0)
    digits = Digits(named_crops)
    watch = RankTrainerCallback(online="model.predictor", target="model.projector", on_alarm="stop")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=128,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_drop_last=True,
        )
        trainer = Trainer(TwoViews(), arguments, train_dataset=digits, callbacks=[watch])
        trainer.train()
    ranks = [entry for entry in trainer.state.log_history if "rank_difference" in entry]
    assert watch.monitor is not None
    print(f"{len(ranks)} readings, the last {ranks[-1]['rank_difference']:+.2f}, {watch.monitor.diagnosis}")
    return watch.monitor


if __name__ == "__main__":
    main()
