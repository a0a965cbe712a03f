"""A model by name: a row of the zoo, its published recipe and a backbone."""

from __future__ import annotations

from torch import nn

from rankgap.model.assembly import assemble
from rankgap.model.backbones import build_encoder
from rankgap.model.branches import DualBranch
from rankgap.model.heads import Heads
from rankgap.model.methods import Method, design
from rankgap.run.recipes import load_recipe


def build(
    method: str | Method,
    *,
    backbone: str | nn.Module = "resnet18",
    online: str | None = None,
    target: str | None = None,
    heads: Heads | None = None,
    channels: int = 3,
    size: int = 32,
    views: int = 2,
    targets: int | None = None,
) -> DualBranch:
    """A branch model: a plain `nn.Module` whose forward takes views and returns `Outputs`.

    Args:
        method: a name of the zoo, or a row of your own.
        backbone: `resnet_tiny`, any timm name, or your own module (B, C, H, W) -> (B, F).
        online: replaces the online map: "identity", a map ("predictor", "directcopy"), or a gain ("power:0.5").
        target: replaces the target map: "identity", a map of the target branch, or a gain ("power:-0.5").
        heads: widths, temperatures and momenta; the method's CIFAR recipe by default.
        channels: channels of an image.
        size: side of a view in pixels (it decides the stem).
        views: number of views per step.
        targets: number of views that the target branch sees, the first ones; None for all.

    Raises:
        UserError: an unknown method, map, gain or backbone; the message suggests the nearest name.

    Example:
        >>> import torch
        >>> model = build("byol", backbone="resnet_tiny", target="power:-0.5")
        >>> model(torch.randn(2, 8, 3, 32, 32)).target.shape
        torch.Size([2, 8, 256])
    """
    row = design(method, online=online, target=target) if isinstance(method, str) else method
    heads = heads or load_recipe("cifar", row.body)
    encoder = build_encoder(backbone, channels=channels, size=size)
    return assemble(row, encoder, heads, features=encoder.features, views=views, targets=targets)
