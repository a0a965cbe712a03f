"""Watch stable-pretraining's data2vec by hand: its target is a mean of blocks, which no module returns.

The method's output has both branches and the mask, so the loop gives the monitor the rows that the loss compares,
every five steps.

python -m examples.stable_pretraining_data2vec
"""

from __future__ import annotations

import torch
from stable_pretraining.methods.data2vec import Data2Vec
from timm.models.vision_transformer import VisionTransformer

import rankgap as rg
from examples.photos import Photos


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=0)
    model = Data2Vec(vit, top_k_blocks=2, image_size=32)
    optimizer = torch.optim.AdamW(model.parameters(with_callbacks=False), lr=5e-4)
    loader = Photos().batches()
    monitor, step = rg.RankMonitor(), 0
    while step < steps:
        for images in loader:
            out = model(images)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.encoder.update_teacher()
            if step % 5 == 0:
                masked = out.mask.bool()
                monitor.update(out.predictions[masked], out.target[masked], step=step)
            step += 1
            if step >= steps:
                break
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
