"""Watch stable-pretraining's I-JEPA with Lightning's Trainer.

The method runs its teacher part by part, so that a hook on `encoder.teacher` never fires: the teacher's last part,
`encoder.teacher.vit.norm`, has its outputs.

python -m examples.stable_pretraining_ijepa
"""

from __future__ import annotations

from typing import Any

import lightning as L
import stable_pretraining as spt
import torch
import torch.nn.functional as F
from stable_pretraining.callbacks import TeacherStudentCallback
from stable_pretraining.methods.ijepa import IJEPA
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import rankgap as rg
from examples.photos import Photos


def forward(self: Any, batch: dict[str, Tensor], stage: str) -> dict[str, Tensor]:
    """The forward function that stable-pretraining's Module takes: a batch -> loss and embedding."""
    out = self.method(batch["image"])
    return {"loss": out.loss, "embedding": out.embedding}


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps; a collapse would stop the training."""
    L.seed_everything(0, verbose=False)
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=0)
    method = IJEPA(vit, predictor_embed_dim=64, predictor_depth=2, ema_decay_start=0.999)
    module = spt.Module(
        method=method,
        forward=forward,
        optim={"optimizer": {"type": "AdamW", "lr": 5e-4}, "interval": "step"},
    )
    masks: dict[str, Tensor] = {}
    method.masking.register_forward_hook(lambda module, args, out: masks.update(target=out.target_idx))

    def targets(h: Tensor) -> Tensor:
        """What the loss compares with: the teacher's normalised outputs at this step's target patches."""
        h = F.layer_norm(h, h.shape[-1:])
        return h.gather(1, masks["target"][..., None].expand(-1, -1, h.shape[-1]))

    watch = rg.RankCallback(
        online="method.predictor",
        target="method.encoder.teacher.vit.norm",
        layout="b t d",
        then=(None, targets),
        on_alarm="stop",
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[watch, TeacherStudentCallback()],
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    loader = Photos().batches(collate=lambda crops: {"image": torch.stack(crops)})
    trainer.fit(module, datamodule=spt.data.DataModule(train=loader))
    assert watch.monitor is not None
    print(f"rank difference {watch.monitor.history[-1].rank_difference:+.2f}, {watch.monitor.diagnosis}")
    return watch.monitor


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
