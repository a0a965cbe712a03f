from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.model.backbones import build_encoder, check_backbone, patch_size
from rankgap.run.build import build


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


def test_a_transformer_interpolates_its_positions_as_timm_resamples_them() -> None:
    """An encoder built for 64 px, at 32 px, is one built for 32 px with timm's resampled positions."""
    torch.manual_seed(0)
    large = build_encoder("vit_tiny_patch16_224", size=64, sizes=(32, 96)).eval()
    small = build_encoder("vit_tiny_patch16_224", size=32).eval()
    state = large.state_dict()
    positions = resample_abs_pos_embed(state["network.pos_embed"], new_size=[2, 2], num_prefix_tokens=1)
    small.load_state_dict(state | {"network.pos_embed": positions})
    views = torch.randn(3, 3, 32, 32)
    assert_close(large(views), small(views))
    for size in (64, 96, 112):
        assert large(torch.randn(2, 3, size, size)).shape == (2, 192)


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("resnet_tiny", 1),
        ("resnet18", 1),
        ("mobilenetv3_small_050", 1),
        ("vit_tiny_patch16_224", 16),
        ("vit_small_patch14_dinov2", 14),
        ("vit_tiny_r_s16_p8_224", 32),
        ("swin_tiny_patch4_window7_224", 4),
    ],
)
def test_views_are_multiples_of_a_transformer_s_patch(name: str, patch: int) -> None:
    assert patch_size(name) == patch


def test_the_patch_of_a_module_is_its_own() -> None:
    assert patch_size(timm.create_model("vit_tiny_patch16_224", patch_size=8, depth=1)) == 8
    assert patch_size(build_encoder("vit_tiny_patch16_224", size=32)) == 16
    assert patch_size(nn.Conv2d(3, 4, 3)) == 1


def test_a_backbone_that_takes_one_size_alone_is_refused_with_a_remedy() -> None:
    name = "vit_relpos_small_patch16_224"
    assert build_encoder(name, size=32, sizes=(32, 32)).features == 384
    with pytest.raises(
        UserError, match=rf"{name} does not take 3-channel images of 16 px.*choose one, or pass"
    ) as e:
        build_encoder(name, size=32, sizes=(32, 16))
    assert "views.*.size=null" in str(e.value)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    with pytest.raises(UserError, match="Sequential does not take 3-channel images of 4 px"):
        build_encoder(module, size=8, sizes=(4,))


def test_drop_path_grows_with_depth_and_is_refused_where_there_is_none() -> None:
    network = build_encoder("vit_tiny_patch16_224", size=32, drop_path=0.2).network
    rates = [part.drop_prob for part in network.modules() if isinstance(part, DropPath)]
    assert (min(rates), max(rates)) == (pytest.approx(0.2 / 11), pytest.approx(0.2))
    assert build_encoder("resnet18", drop_path=0.1).features == 512
    for name in ("resnet_tiny", "vgg11"):
        with pytest.raises(UserError, match=rf"{name} has no drop path: pass --settings encoder\.drop_path=0"):
            build_encoder(name, drop_path=0.1)


def test_the_teacher_drops_no_path() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", size=32, drop_path=0.5)
    model = build("dino", backbone=encoder, size=32).train()
    assert model.teacher is not None
    views = torch.randn(1, 8, 3, 32, 32)
    assert_close(model.teacher(views), model.teacher(views))
    assert not torch.allclose(model.online(views)[0], model.online(views)[0])


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_tiny_patch16_224", 32), ("resnet18", 32), ("efficientnet_b0", 32), ("resnet_tiny", 16)],
)
def test_checkpointed_gradients_are_the_same_numbers(name: str, size: int) -> None:
    """Batch norm's statistics too, which see each batch once although its activations are computed twice."""
    plain, again = (build_encoder(name, size=size, drop_path=0.1 if "vit" in name else 0.0) for _ in range(2))
    again.load_state_dict(plain.state_dict())
    again.checkpoint_gradients()
    views, saved = torch.randn(4, 3, size, size), []
    for encoder in (plain, again):
        torch.manual_seed(1)
        for _ in range(2):
            kept = 0

            def count(x: Tensor) -> Tensor:
                nonlocal kept
                kept += x.numel()
                return x

            with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
                loss = encoder(views).square().sum()
            encoder.zero_grad()
            loss.backward()
        saved.append(kept)
    for (key, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, key
        assert q.grad is not None, key
        assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)
    assert_close(again.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    assert saved[1] < 0.7 * saved[0]


def test_a_network_without_checkpointing_is_named() -> None:
    with pytest.raises(UserError, match="--grad-checkpointing: Sequential"):
        build_encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), size=8).checkpoint_gradients()
    with pytest.raises(UserError, match="InceptionV3 has no gradient checkpointing; leave it out"):
        build_encoder("inception_v3", size=96).checkpoint_gradients()


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("vit_tiny_patch16_224", 64, (16, 192)),
        ("deit_tiny_distilled_patch16_224", 32, (4, 192)),
        ("resnet_tiny", 32, (16, 128)),
        ("swin_tiny_patch4_window7_224", 64, (4, 768)),
    ],
)
def test_tokens_are_those_of_the_patches_or_places(name: str, size: int, shape: tuple[int, int]) -> None:
    encoder = build_encoder(name, size=size).eval()
    images = torch.randn(2, 3, size, size)
    tokens = encoder.tokens(images)
    assert tokens.shape == (2, *shape)
    if name in ("resnet_tiny", "swin_tiny_patch4_window7_224"):  # their features are the mean over places
        assert_close(tokens.mean(1), encoder(images))
    elif name == "vit_tiny_patch16_224":  # its feature is the class token
        network: Any = encoder.network
        assert_close(torch.cat([encoder(images)[:, None], tokens], dim=1), network.forward_features(images))


def test_tokens_run_row_by_row() -> None:
    encoder = build_encoder("resnet_tiny", size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    network: Any = encoder.network
    assert_close(encoder.tokens(images)[0, 1], network.forward_features(images)[0, :, 0, 1])


def test_a_network_without_tokens_says_what_it_lacks() -> None:
    encoder = build_encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), size=8)
    with pytest.raises(UserError, match=r"forward_features of Sequential to give tokens.*leave tokens out"):
        encoder.tokens(torch.zeros(1, 3, 8, 8))
