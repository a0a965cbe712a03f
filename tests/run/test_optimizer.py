"""The rates of a group: the encoder's, a layer's, a weight decay that grows; clipping; a frozen encoder."""

from __future__ import annotations

import copy
import itertools
import math
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.testing import assert_close

from rankgap.errors import InterruptedRunError, UserError
from rankgap.model.branches import DualBranch
from rankgap.model.heads import Heads
from rankgap.model.mlp import ProjectorOptions
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.model.schedule import Clock
from rankgap.run.build import build
from rankgap.run.folder import RunFolder
from rankgap.run.optimizer import OptimizerOptions, build_optimizer, ready_gradients, set_rates
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train
from tests.small_run import four_steps

HEADS = Heads(
    projector=ProjectorOptions(widths=(16, 8)),
    prototypes=PrototypeOptions(count=6),
    online={"predictor": PredictorOptions(widths=(4,))},
)
VIEWS = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model(method: str = "simsiam", backbone: str | nn.Module = "resnet_tiny") -> DualBranch:
    torch.manual_seed(0)
    return build(method, backbone=backbone, heads=HEADS, channels=1, size=8)


def clock(step: int) -> Clock:
    return Clock(step=step, steps=8, steps_per_epoch=4)


def rates(net: DualBranch, optimizer: torch.optim.Optimizer, key: str = "lr") -> dict[str, float]:
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_the_encoder_has_its_share_of_the_rate_at_every_step() -> None:
    net, options = model(), OptimizerOptions(lr=0.8, warmup_epochs=1, encoder_lr=0.1)
    optimizer = build_optimizer(net, options)
    for step in (0, 3, 6):
        set_rates(optimizer, options, clock(step), 64)
        whole = options.rate(clock(step), 64)
        for name, rate in rates(net, optimizer).items():
            assert rate == pytest.approx(whole * (0.1 if name.startswith("online.encoder") else 1.0))


def test_layers_decay_by_timm_s_grouping_from_the_top_of_the_encoder_down() -> None:
    options = OptimizerOptions(lr=1.0, warmup_epochs=0, layer_decay=0.5, encoder_lr=0.2)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, num_classes=0, depth=3)
    net = build("simsiam", backbone=network, heads=HEADS, channels=1, size=32)
    optimizer = build_optimizer(net, options)
    set_rates(optimizer, options, clock(0), 256)
    found = rates(net, optimizer)
    for group in param_groups_layer_decay(network, layer_decay=0.5):
        for p in group["params"]:
            [name] = [n for n, q in net.named_parameters() if q is p]
            assert found.pop(name) == pytest.approx(0.2 * group["lr_scale"])
    assert set(found.values()) == {1.0}
    by_depth = rates(net, optimizer)
    at = "online.encoder.network"
    expected = [0.2, 0.1, 0.05, 0.025]
    names = [f"{at}.blocks.{k}.attn.qkv.weight" for k in (2, 1, 0)] + [f"{at}.patch_embed.proj.weight"]
    assert [by_depth[name] for name in names] == pytest.approx(expected)


def test_an_encoder_whose_layers_are_unknown_has_no_layer_decay() -> None:
    net = model(backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 8)))
    with pytest.raises(UserError, match=r"layer_decay: Sequential does not say which layers it has.*leave it out"):
        build_optimizer(net, OptimizerOptions(lr=1.0, layer_decay=0.5))


def test_weight_decay_follows_its_cosine_where_there_is_any() -> None:
    net, options = model(), OptimizerOptions(name="adamw", lr=1.0, weight_decay=0.04, final_weight_decay=0.4)
    optimizer = build_optimizer(net, options)
    for step in (0, 2, 5, 8):
        set_rates(optimizer, options, clock(step), 256)
        decay = 0.4 - 0.36 * (1 + math.cos(math.pi * step / 8)) / 2
        for name, found in rates(net, optimizer, "weight_decay").items():
            assert found == pytest.approx(decay if net.get_parameter(name).ndim > 1 else 0.0)


def test_lars_without_clipping_may_raise_a_rate_as_in_the_authors_swav_and_byol() -> None:
    """LARC with clip=False: w - lr eta |w| / (|g| + wd |w|) (g + wd w), biases and norms included in SwAV's."""
    net, eta, decay, lr = model("swav"), 0.9, 0.01, 0.5
    options = OptimizerOptions(
        name="lars", lr=lr, weight_decay=decay, momentum=0.0, trust=eta, trust_clip=False, decay_all=True
    )
    optimizer = build_optimizer(net, options)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(VIEWS).loss.backward()
    optimizer.step()
    raised = 0
    for name, p in net.named_parameters():
        w, g = before[name], p.grad
        assert g is not None
        norms = float(w.norm()), float(g.norm())
        trust = eta * norms[0] / (norms[1] + decay * norms[0]) if all(norms) else 1.0
        raised += trust > 1
        assert_close(p.detach(), w - lr * trust * (g + decay * w), rtol=1e-4, atol=1e-5)
    assert raised


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_each_gradient_is_clipped_as_torch_clips_it_before_the_step(name: Any) -> None:
    clipped, reference, largest = model(), model(), 0.05
    for net, clip in ((clipped, largest), (reference, 0.0)):
        net(VIEWS).loss.backward()
        options = OptimizerOptions(name=name, lr=0.5, clip=clip)
        optimizer = build_optimizer(net, options)
        ready_gradients(optimizer, net, options)
        if net is reference:
            norms = [float(nn.utils.clip_grad_norm_(p, largest)) for p in net.parameters() if p.requires_grad]
            assert min(norms) < largest < max(norms)
        optimizer.step()
    for p, q in zip(clipped.parameters(), reference.parameters(), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_frozen_encoder_does_not_move_while_the_heads_do(name: Any, clip: float) -> None:
    net = model("byol")
    options = OptimizerOptions(
        name=name, lr=0.1, weight_decay=0.1, freeze_encoder_epochs=0.5, clip=clip, warmup_epochs=0
    )
    optimizer = build_optimizer(net, options)
    for step in range(4):
        before = copy.deepcopy(net)
        set_rates(optimizer, options, clock(step), 256)
        optimizer.zero_grad()
        net(VIEWS).loss.backward()
        ready_gradients(optimizer, net, options)
        optimizer.step()
        for (key, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
            still = key.startswith("teacher") or (key.startswith("online.encoder") and step < 2)
            if still or p.ndim > 1:  # a bias before batch norm has no gradient
                assert torch.equal(p, q) is still, key
        begun = {n for n, p in net.named_parameters() if optimizer.state[p]}
        assert any(n.startswith("online.encoder") for n in begun) is (step >= 2)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_with_a_frozen_encoder_resumes_exactly(name: str, stop: int, tmp_path: Path) -> None:
    """Stopped while the encoder is frozen, and after."""
    settings = {
        "optimizer.name": name,
        "optimizer.lr": 0.05,
        "optimizer.freeze_encoder_epochs": 1.0,
        "optimizer.final_weight_decay": 0.1,
        "optimizer.encoder_lr": 0.5,
        "optimizer.layer_decay": 0.8,
        "optimizer.clip": 1.0 if name == "adamw" else 0.0,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options: dict[str, Any] = {"settings": settings, "protocol": ()}
    kept: list[torch.Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            kept.append(pl_module.model.online.encoder.network.conv1.weight.detach().clone())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if len(kept) > 4 and pl_module.step == stop:
                signal.raise_signal(signal.SIGINT)

    train(four_steps(whole, **options), callbacks=[Watch()])
    assert [torch.equal(a, b) for a, b in itertools.pairwise(kept)] == [True, True, False]
    with pytest.raises(InterruptedRunError, match=f"interrupted at step {stop} of 4"):
        train(four_steps(parts, **options), callbacks=[Watch()])
    train(resumed(parts, {}))
    first, second = (RunFolder(path).load_checkpoint() for path in (whole, parts))
    assert all(torch.equal(first.model[key], second.model[key]) for key in first.model)
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
