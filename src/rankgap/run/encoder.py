"""The encoder that one keeps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from rankgap.model.methods import build, design
from rankgap.run.folder import RunFolder
from rankgap.run.plan import load_weights
from rankgap.run.recipes import from_dict
from rankgap.views.random_views import eval_view


class TrainedEncoder(nn.Module):
    """What one keeps of a run: from images as they come to features.

    Args:
        encoder: normalised images (B, C, S, S) -> features (B, F).
        size: S, side of a view in pixels.
        mean: of each channel in [0, 1].
        std: of each channel, likewise.
    """

    def __init__(self, encoder: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder, self.size, self.mean, self.std = encoder, size, tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of any size, resized and normalised as in training's evaluation -> (B, F)."""
        features: Tensor = self.encoder(eval_view(images, None, self.size, self.mean, self.std))
        return features


def load_encoder(path: str | Path, *, branch: Literal["online", "target"] = "online") -> TrainedEncoder:
    """The trained encoder of a run, in evaluation mode; needs no data.

    Args:
        path: the run folder.
        branch: whose encoder; the target's is the EMA teacher where the method has one.

    Raises:
        UserError: no run, no checkpoint, or a checkpoint of another model.
    """
    folder = RunFolder(Path(path))
    saved = folder.config()
    run, about = saved["run"], saved["model"]
    recipe = from_dict(saved["recipe"], f"{path}/config.yaml")
    model = build(
        design(run["method"], online=run["online"], target=run["target"]),
        backbone=about["backbone"],
        heads=recipe.heads,
        channels=about["channels"],
        size=about["size"],
        views=len(recipe.views),
    )
    load_weights(model, folder.load_checkpoint()["model"], folder.checkpoint)
    return TrainedEncoder(model.encoder(branch), about["size"], about["mean"], about["std"]).eval()
