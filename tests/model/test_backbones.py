from __future__ import annotations

import pytest
import torch
from torch import nn

from rankgap.errors import UserError
from rankgap.model.backbones import build_encoder, check_backbone


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet_tiny", 1, 8),
        ("resnet18", 3, 32),
        ("vit_tiny_patch16_224", 3, 64),
        ("deit_tiny_patch16_224", 3, 32),
        ("mobilenetv3_small_050", 5, 40),
    ],
)
def test_an_encoder_gives_one_vector_of_its_width(name: str, channels: int, size: int) -> None:
    encoder = build_encoder(name, channels=channels, size=size)
    assert encoder.training
    assert encoder(torch.randn(2, channels, size, size)).shape == (2, encoder.features)


def test_the_small_image_stem_is_for_small_images_alone() -> None:
    small, large = (build_encoder("resnet18", size=size).network for size in (32, 64))
    strides = [m.get_submodule("conv1") for m in (small, large)]
    assert [conv.stride for conv in strides if isinstance(conv, nn.Conv2d)] == [(1, 1), (2, 2)]
    assert isinstance(small.get_submodule("maxpool"), nn.Identity)


def test_every_block_of_the_tiny_network_has_a_gradient_from_the_first_step() -> None:
    encoder = build_encoder("resnet_tiny", size=16)
    encoder(torch.randn(8, 3, 16, 16)).square().sum().backward()
    weights = {name: p for name, p in encoder.named_parameters() if p.ndim > 1}
    assert sum(p.numel() for p in encoder.parameters()) < 0.35e6
    assert [name for name, p in weights.items() if p.grad is None or float(p.grad.norm()) < 1e-6] == []


def test_a_backbone_that_does_not_exist_or_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        check_backbone("resnet81")
    with pytest.raises(
        UserError, match=r"pretrained weights \(dino\): add --init timm .* vit_small_patch16_224 trains the same"
    ):
        check_backbone("vit_small_patch16_224.dino")
    with pytest.raises(UserError, match=r"unknown backbone 'vit_smal_patch16_224.dino': did you mean"):
        check_backbone("vit_smal_patch16_224.dino")
    with pytest.raises(UserError, match="does not take 3-channel images of 8 px"):
        build_encoder("vit_tiny_patch16_224", size=8)


def test_a_module_becomes_an_encoder_with_its_weights_and_measured_width() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    encoder = build_encoder(module, size=8)
    assert (encoder.network, encoder.features) == (module, 5)
    assert build_encoder(encoder) is encoder
    with pytest.raises(UserError, match=r"Conv2d: expected one vector for each image, got shape \(1, 4, 6, 6\)"):
        build_encoder(nn.Conv2d(3, 4, 3), size=8)
    with pytest.raises(UserError, match="Sequential does not take 1-channel images of 8 px"):
        build_encoder(module, channels=1, size=8)
