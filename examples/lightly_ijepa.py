"""Watch lightly's I-JEPA modules: the predictor against the target encoder, at the patches that the loss compares.

python -m examples.lightly_ijepa
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from lightly.data.ijepa_collate import IJEPAMaskCollator
from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import apply_masks, deactivate_requires_grad, update_momentum
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import rankgap as rg
from examples.photos import Photos


class IJEPA(nn.Module):
    """A context encoder with its predictor, and a target encoder that follows it: 64 patches of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, class_token=False, global_pool=""
        )
        self.encoder = MaskedVisionTransformerTIMM(vit)
        self.target_encoder = copy.deepcopy(self.encoder)
        deactivate_requires_grad(self.target_encoder)
        self.predictor = IJEPAPredictorTIMM(64, depth=2, mlp_dim=96, predictor_embed_dim=48, num_heads=3)

    def forward(self, images: Tensor, context: list[Tensor], masked: list[Tensor]) -> Tensor:
        """Predictions (M B, n, D) of the M masked blocks of n patches, from the patches of the context."""
        predictions: Tensor = self.predictor(self.encoder(images, idx_keep=context[0]), context, masked)
        return predictions


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    model = IJEPA()
    blocks = IJEPAMaskCollator(
        32, 4, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2), aspect_ratio=(0.75, 1.5), npred=4
    )
    loader = Photos().batches(collate=blocks)
    optimizer = torch.optim.AdamW([*model.encoder.parameters(), *model.predictor.parameters()], lr=5e-4)
    masked: list[Tensor] = []

    def targets(h: Tensor) -> Tensor:
        """What the loss compares with: the target encoder's normalised outputs at this step's masked patches."""
        out: Tensor = apply_masks(F.layer_norm(h, h.shape[-1:]), masked)
        return out

    with rg.RankMonitor(
        model,
        online="predictor",
        target="target_encoder",
        layout="b t d",
        then=(None, targets),
        steps=steps,
    ) as monitor:
        while monitor.step < steps:
            for images, context, masked in loader:
                with torch.no_grad():
                    h = targets(model.target_encoder(images))
                loss = F.smooth_l1_loss(model(images, context, masked), h)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                update_momentum(model.encoder, model.target_encoder, m=0.999)
                if monitor.step >= steps:
                    break
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
