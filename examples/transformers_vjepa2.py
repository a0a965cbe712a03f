"""Watch V-JEPA 2 of Hugging Face's transformers: its predictor against a target encoder, on short videos.

The library has the modules, and leaves their training to you. Its encoder sees every patch: the masks act on its
outputs.

python -m examples.transformers_vjepa2
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

import rankgap as rg
from examples.photos import Photos

FRAMES, SIZE, PATCH, TUBE = 8, 32, 8, 2  # a video is (FRAMES, 3, SIZE, SIZE), a token TUBE x PATCH x PATCH of it


def pan(photos: Tensor) -> Tensor:
    """Videos (B, FRAMES, 3, SIZE, SIZE): a window that moves over each photo by two pixels per frame."""
    return torch.stack([photos[:, :, 2 * t : 2 * t + SIZE, 2 * t : 2 * t + SIZE] for t in range(FRAMES)], dim=1)


def tubes(batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of the context and of the target (B, n): half of the places in the frame, at all times."""
    places = (SIZE // PATCH) ** 2
    order = torch.rand(batch, places).argsort(1)
    times = torch.arange(FRAMES // TUBE) * places
    context, target = ((half[:, None, :] + times[:, None]).flatten(1) for half in order.chunk(2, dim=1))
    return [context], [target]


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    size = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3}
    narrow = {"pred_hidden_size": 48, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}
    config = VJEPA2Config(
        crop_size=SIZE, patch_size=PATCH, frames_per_clip=FRAMES, tubelet_size=TUBE, **size, **narrow
    )
    model = VJEPA2Model(config)
    target_encoder = copy.deepcopy(model.encoder).requires_grad_(False)
    loader = Photos(SIZE + 2 * FRAMES).batches(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    target: list[Tensor] = []

    def targets(h: Tensor) -> Tensor:
        """What the loss compares with: the target encoder's normalised outputs at this step's target tokens."""
        return F.layer_norm(h, h.shape[-1:]).gather(1, target[0][..., None].expand(-1, -1, h.shape[-1]))

    with rg.RankMonitor(
        online=model.predictor, target=target_encoder, layout="b t d", then=(None, targets), steps=steps
    ) as monitor:
        while monitor.step < steps:
            for photos in loader:
                videos = pan(photos)
                context, target = tubes(len(videos))
                out = model(videos, context_mask=context, target_mask=target)
                h = targets(target_encoder(videos).last_hidden_state)
                loss = F.l1_loss(out.predictor_output.last_hidden_state, h)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    for p, average in zip(model.encoder.parameters(), target_encoder.parameters(), strict=True):
                        average.lerp_(p, 0.001)
                if monitor.step >= steps:
                    break
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
