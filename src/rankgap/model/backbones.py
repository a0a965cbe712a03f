"""Encoders: timm's, with the stem that small images need."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankgap.errors import UserError, unknown
from rankgap.model.encoder_options import Stem

_OWN = "module:"  # prefix of the name of an encoder that is the user's own module
SMALL_IMAGE = 64  # px; below this a 7x7 stride-2 stem and a max-pool throw most of the image away
# What networks raise at images that they were not made for.
_MISFITS = (ValueError, AssertionError, TypeError, RuntimeError, AttributeError, NotImplementedError)


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

    def tokens(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): the N patch tokens of a transformer, or the N places of a feature map.

        Rows of the image come one after the other. A class token and registers are left out.

        Raises:
            UserError: the network has neither patch tokens nor a feature map.
        """
        network: Any = self.network
        made = network.forward_features(images) if hasattr(network, "forward_features") else None
        if isinstance(made, Tensor) and made.ndim == 3:
            return made[:, getattr(network, "num_prefix_tokens", 0) :]
        if isinstance(made, Tensor) and made.ndim == 4:
            channels_last = str(getattr(network, "output_fmt", "NCHW")) == "NHWC"
            return made.flatten(1, 2) if channels_last else made.flatten(2).mT
        raise UserError(
            f"tokens: expected the forward_features of {type(network).__name__} to give tokens (B, N, D) or a "
            f"feature map (B, D, H, W), as timm's models do; leave tokens out"
        )

    def checkpoint_gradients(self) -> None:
        """Compute the activations of each block again in the backward pass, instead of keeping them.

        Raises:
            UserError: the network has no gradient checkpointing.
        """
        network: Any = self.network
        try:
            network.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            name = type(network).__name__
            raise UserError(f"--grad-checkpointing: {name} has no gradient checkpointing; leave it out") from error
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(partial(_count_a_batch_once, module.momentum))


class TokenEncoder(nn.Module):
    """An encoder as a module that gives the tokens of each image, (B, C, H, W) -> (B, N, D).

    Args:
        encoder: an `Encoder`, whose `tokens` are given.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        assert isinstance(encoder, Encoder)
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """As `Encoder.tokens`."""
        return self.encoder.tokens(images)


def _count_a_batch_once(momentum: float | None, norm: Any, _: Any) -> None:
    """Keep a batch norm's running statistics as they are while its forward is computed again."""
    again = torch._C._current_graph_task_id() >= 0  # within a backward pass
    norm.momentum = 0.0 if again else momentum
    if again and norm.num_batches_tracked is not None:
        norm.num_batches_tracked -= 1


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
            "rebuild: use rankgap.load_encoder(RUN, model=...), rankgap.export(RUN, to=..., model=...), or "
            "rankgap.train(..., model=..., resume=True)"
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


def patch_size(backbone: str | nn.Module) -> int:
    """The side in pixels of a transformer's patch, of which views' sizes are multiples; 1 for other networks.

    Args:
        backbone: a name that `check_backbone` accepts, or a module.
    """
    if backbone == "resnet_tiny":
        return 1
    if isinstance(backbone, str):
        with torch.device("meta"):  # a shape without memory
            backbone = timm.create_model(backbone, num_classes=0)
    embedding: Any = getattr(getattr(backbone, "network", backbone), "patch_embed", None)
    return int(embedding.feat_ratio()) if hasattr(embedding, "feat_ratio") else 1


def build_encoder(
    backbone: str | nn.Module,
    *,
    channels: int = 3,
    size: int = 32,
    sizes: Sequence[int] = (),
    drop_path: float = 0.0,
    stem: Stem = "auto",
) -> Encoder:
    """Build an encoder by name, with random weights, or around a module, which keeps its weights.

    A vision transformer's position embeddings belong to `size`; for other sizes they are interpolated.

    Args:
        backbone: `resnet_tiny`, any timm model, or a module (B, C, H, W) -> (B, F).
        channels: channels of an image.
        size: side of a view in pixels.
        sizes: further sides of views that the encoder must take.
        drop_path: probability that an image skips the last residual block (`EncoderOptions`).
        stem: of a ResNet: small is the small-image stem, own is timm's; auto is small for views under 64 px.

    Raises:
        UserError: timm has no such model, the name asks for pretrained weights, or the model has no drop path,
            does not accept images of one of the sizes, or does not return one vector per image.
    """
    if isinstance(backbone, Encoder):
        return backbone
    name = backbone if isinstance(backbone, str) else type(backbone).__name__
    network: nn.Module
    if isinstance(backbone, str):
        check_backbone(backbone)
        try:
            network = _create(backbone, channels, size, drop_path, stem)
        except _MISFITS as error:
            raise _misfit(name, channels, size, error) from error
    else:
        network = backbone
    if drop_path and not any(getattr(part, "drop_prob", 0) for part in network.modules()):
        raise UserError(f"backbone {name} has no drop path: pass --settings encoder.drop_path=0")
    network.eval()
    width = _width(network, name, channels, size)
    for other in sorted(set(sizes) - {size}):
        try:
            _width(network, name, channels, other)
        except UserError as error:
            raise UserError(
                f"{error}; views of several sizes need a backbone that takes them all, such as a ResNet or "
                f"vit_small_patch16_224: choose one, or pass --settings 'views.*.size=null'"
            ) from error
    return Encoder(network.train(), width)


def _misfit(name: str, channels: int, size: int, error: Exception) -> UserError:
    return UserError(
        f"backbone {name} does not take {channels}-channel images of {size} px: {str(error).rstrip('. ')}"
    )


def _width(network: nn.Module, name: str, channels: int, size: int) -> int:
    """F, the width of a network's features; the one that timm states is not that of the output in every model."""
    like = next(iter(network.parameters()), torch.empty(0))
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, channels, size, size, device=like.device, dtype=like.dtype))
            shape = tuple(features.shape)
    except _MISFITS as error:
        raise _misfit(name, channels, size, error) from error
    if len(shape) != 2:
        raise UserError(f"backbone {name}: expected one vector for each image, got shape {shape}")
    return int(shape[1])


def _create(name: str, channels: int, size: int, drop_path: float, stem: Stem) -> Any:
    if name == "resnet_tiny":
        return resnet_tiny(channels)
    dropped = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        network, _ = create_timm(name, channels, size, **dropped)
    except TypeError:
        network, _ = create_timm(name, channels, size)  # it has no drop path, as the caller will find
    small = stem == "small" or (stem == "auto" and size < SMALL_IMAGE)
    if isinstance(network, ResNet) and isinstance(network.conv1, nn.Conv2d) and small:
        network = small_image_stem(network, channels)
    return network


def create_timm(name: str, channels: int, size: int, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A timm model without its classifier, and the arguments with which timm creates it.

    Transformers must know the size, and some take others too; convolutional networks take neither argument.

    Args:
        name: timm's name of it.
        channels: channels of an image.
        size: side of a view in pixels.
        more: further arguments of the model.

    Raises:
        TypeError: the model does not take one of the further arguments.
    """
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    for sized in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}):
        try:
            return timm.create_model(name, **options, **sized, **more), options | sized
        except TypeError:
            continue
    return timm.create_model(name, **options, **more), options
