"""Encoders: timm's, with the stem that small images need."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from rankgap.errors import UserError, unknown

_OWN = "module:"  # prefix of the name of an encoder that is the user's own module
Stem = Literal["auto", "small", "own"]
SMALL_IMAGE = 64  # px; below this a 7x7 stride-2 stem and a max-pool throw most of the image away


class Encoder(nn.Module):
    """A backbone that returns one feature vector per image: (B, C, H, W) -> (B, F).

    Args:
        network: a timm model without its classifier.
        features: F, the width of its output.
    """

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        out: Tensor = self.network(images)
        return out


def small_image_stem(network: ResNet, channels: int) -> ResNet:
    """A ResNet for images under 64 px: 3x3 stride-1 first convolution, no max-pool (SimCLR, appendix B.9)."""
    network.conv1 = nn.Conv2d(channels, network.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def resnet_tiny(channels: int) -> ResNet:
    """Four stages of one basic block, 16 to 128 wide, 0.3 million parameters; it trains on a CPU in minutes."""
    # Residual branches that start at zero (timm's default) have barely opened when a short run ends.
    network = ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        in_chans=channels,
        num_classes=0,
        channels=(16, 32, 64, 128),
        zero_init_last=False,
    )
    # timm's stem is 64 wide whatever the stages are: at full resolution that is most of the work.
    network.bn1 = nn.BatchNorm2d(16)
    network.layer1[0] = BasicBlock(16, 16)
    small_image_stem(network, channels)
    # Before batch norm a convolution's weights turn at lr / |weights|^2. PyTorch's initial weights are 2.4 times
    # smaller than timm's: a short run turns them enough at a learning rate at which the heads keep their rank.
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return network


def own_name(module: nn.Module) -> str:
    """A run's name for an encoder that is the user's own module."""
    return f"{_OWN}{type(module).__name__}"


def check_backbone(name: str) -> None:
    """Raise `UserError`, with the nearest names, unless `build_encoder` knows the name."""
    if name.startswith(_OWN):
        raise UserError(
            f"this run's encoder is a model of your own, {name.removeprefix(_OWN)}, which only Python can "
            "rebuild: use rankgap.load_encoder(RUN, model=...), or rankgap.train(..., model=..., resume=True)"
        )
    architecture, _, tag = name.partition(".")
    if tag and timm.is_model(architecture):
        raise UserError(
            f"backbone {name} names pretrained weights ({tag}): add --init timm to start from them; "
            f"{architecture} trains the same network from random weights"
        )
    if name != "resnet_tiny" and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.5)
        raise unknown("backbone", name, ["resnet_tiny", "resnet18", "resnet50", "vit_tiny_patch16_224", *near])


def build_encoder(backbone: str | nn.Module, *, channels: int = 3, size: int = 32, stem: Stem = "auto") -> Encoder:
    """Build an encoder by name, with random weights, or around a module, which keeps its weights.

    Args:
        backbone: `resnet_tiny`, any timm model, or a module (B, C, H, W) -> (B, F).
        channels: channels of an image.
        size: side of a view in pixels.
        stem: of a ResNet: small is the small-image stem, own is timm's; auto is small for views under 64 px.

    Raises:
        UserError: timm has no such model, the name asks for pretrained weights, or the model does not accept
            images of this size or does not return one vector per image.
    """
    if isinstance(backbone, Encoder):
        return backbone
    if isinstance(backbone, str):
        check_backbone(backbone)
        if backbone == "resnet_tiny":
            return Encoder(resnet_tiny(channels), 128)
    name = backbone if isinstance(backbone, str) else type(backbone).__name__
    try:
        network = (_create(backbone, channels, size) if isinstance(backbone, str) else backbone).eval()
        small = stem == "small" or (stem == "auto" and size < SMALL_IMAGE)
        if isinstance(backbone, str) and isinstance(network, ResNet) and small:
            network = small_image_stem(network, channels) if isinstance(network.conv1, nn.Conv2d) else network
        like = next(iter(network.parameters()), torch.empty(0))
        with torch.no_grad():  # the width that timm states is not that of the output in every model
            features = network(torch.zeros(1, channels, size, size, device=like.device, dtype=like.dtype))
            shape = tuple(features.shape)
    except (ValueError, AssertionError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise UserError(
            f"backbone {name} does not take {channels}-channel images of {size} px: {error}"
        ) from error
    if len(shape) != 2:
        raise UserError(f"backbone {name}: expected one vector for each image, got shape {shape}")
    return Encoder(network.train(), shape[1])


def _create(name: str, channels: int, size: int) -> nn.Module:
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    network: nn.Module
    try:  # transformers must know the size; convolutional networks do not take it
        network = timm.create_model(name, img_size=size, **options)
    except TypeError:
        network = timm.create_model(name, **options)
    return network
