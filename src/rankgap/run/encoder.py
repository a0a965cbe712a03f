"""The trained encoder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from rankgap.model.methods import design
from rankgap.run.build import build
from rankgap.run.folder import RunFolder
from rankgap.spectra.pair import Side
from rankgap.views.random_views import eval_view


class TrainedEncoder(nn.Module):
    """A run's encoder, which takes images as they are and returns features.

    Args:
        encoder: normalised images (B, C, S, S) -> features (B, F).
        size: S, side of a view in pixels.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
    """

    def __init__(self, encoder: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder, self.size, self.mean, self.std = encoder, size, tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of any size -> (B, F), resized and normalised as in the run's evaluation."""
        features: Tensor = self.encoder(eval_view(images, None, self.size, self.mean, self.std))
        return features


def load_encoder(path: str | Path, *, checkpoint: str = "last", branch: Side = "online") -> TrainedEncoder:
    """Load the trained encoder of a run, in evaluation mode. No data are needed.

    Args:
        path: the run folder.
        checkpoint: one of the run's checkpoints: last, best, or one like epoch-0010.
        branch: the branch whose encoder is loaded; the target's is the EMA teacher if the method has one.

    Raises:
        UserError: no run, no such checkpoint, or a checkpoint of another model.
    """
    folder = RunFolder(Path(path))
    saved = folder.saved()
    state = folder.load_checkpoint(folder.checkpoint_called(checkpoint))
    model = build(
        design(saved.run.method, online=saved.run.online, target=saved.run.target),
        backbone=saved.model.backbone,
        heads=saved.recipe,
        channels=saved.model.channels,
        size=saved.model.size,
        views=len(saved.recipe.views),
    )
    state.load_model(model)
    return TrainedEncoder(model.encoder(branch), saved.model.size, saved.model.mean, saved.model.std).eval()
