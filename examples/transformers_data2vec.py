"""Watch data2vec on the vision encoder of Hugging Face's transformers: student's head against teacher's targets.

The library has the encoder, and leaves the two branches to you. A target that is a mean of several blocks is no
module's output, so a small module makes it, and has a name to watch.

python -m examples.transformers_data2vec
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Data2VecVisionConfig, Data2VecVisionModel

import rankgap as rg
from examples.photos import Photos


class TopBlocks(nn.Module):
    """data2vec's target: the mean of an encoder's last blocks at each patch, normalised."""

    def __init__(self, encoder: nn.Module, blocks: int) -> None:
        super().__init__()
        self.encoder, self.blocks = encoder, blocks

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> targets (B, T, D)."""
        hidden = self.encoder(images, output_hidden_states=True).hidden_states
        patches = torch.stack(hidden[-self.blocks :]).mean(0)[:, 1:]  # without the class token
        return F.layer_norm(patches, patches.shape[-1:])


class Data2Vec(nn.Module):
    """A student that sees some patches, and a teacher that follows it and sees all: 64 patches of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        config = Data2VecVisionConfig(
            image_size=32,
            patch_size=4,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            use_mask_token=True,
            use_relative_position_bias=True,
        )
        self.student = Data2VecVisionModel(config)
        self.head = nn.Linear(96, 96)
        self.teacher = TopBlocks(copy.deepcopy(self.student).eval().requires_grad_(False), blocks=2)

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Predictions (B, T, D) of images whose patches are hidden where masked (B, T)."""
        out: Tensor = self.head(self.student(images, bool_masked_pos=masked).last_hidden_state[:, 1:])
        return out


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    model = Data2Vec()
    optimizer = torch.optim.AdamW([*model.student.parameters(), *model.head.parameters()], lr=5e-4)
    loader = Photos().batches()
    masked = torch.empty(0)

    def at_masked(z: Tensor) -> Tensor:
        """The rows (N, D) that the loss compares."""
        return z[masked]

    with rg.RankMonitor(
        model, online="head", target="teacher", then=(at_masked, at_masked), steps=steps
    ) as monitor:
        while monitor.step < steps:
            for images in loader:
                masked = torch.rand(len(images), 64) < 0.6
                targets = model.teacher(images)
                loss = F.smooth_l1_loss(at_masked(model(images, masked)), at_masked(targets))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    pairs = zip(model.student.parameters(), model.teacher.encoder.parameters(), strict=True)
                    for p, average in pairs:
                        average.lerp_(p, 0.001)
                if monitor.step >= steps:
                    break
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
