from __future__ import annotations

import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rankgap.data import load_data
from rankgap.errors import NonFiniteError, UserError
from rankgap.model.branches import DualBranch, Outputs
from rankgap.model.heads import Heads
from rankgap.model.mlp import OutputNorm, ProjectorOptions
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.model.schedule import Clock
from rankgap.run.build import build
from rankgap.run.feed import EpochBatches, TrainingData
from rankgap.run.module import SelfSupervised
from rankgap.run.optimizer import OptimizerOptions, build_optimizer, parameter_groups
from rankgap.run.work import Work
from rankgap.spectra.effective_rank import effective_rank
from rankgap.views import ViewConfig, Views
from tests.training import descend

WORK = Work(images=100, batch_size=32, epochs=4, features=128)


def model(method: str = "simsiam", *, output_norm: OutputNorm = "batch", **options: Any) -> DualBranch:
    torch.manual_seed(0)
    heads = Heads(
        projector=ProjectorOptions(widths=(32, 16), output_norm=output_norm),
        prototypes=PrototypeOptions(count=12),
        online={"predictor": PredictorOptions(widths=(8,))},
    )
    return build(method, backbone="resnet_tiny", heads=heads, channels=1, size=8, **options)


def module(work: Work = WORK, method: str = "simsiam", lr: float = 0.1, **options: Any) -> SelfSupervised:
    views = Views([ViewConfig(), ViewConfig()], 8, [0.3], [0.4])
    return SelfSupervised(model(method), views, OptimizerOptions(lr=lr), work, **options)


def clock(step: int, steps: int = 100) -> Clock:
    return Clock(step=step, steps=steps, steps_per_epoch=10)


def test_the_rate_warms_up_linearly_then_follows_a_cosine_and_scales_with_the_batch() -> None:
    optimizer = OptimizerOptions(lr=1.0, warmup_epochs=2, warmup_lr=0.1, final_lr=0.2)
    rates = [optimizer.rate(clock(step), 256) for step in (0, 10, 20, 60, 100)]
    assert_close(rates, [0.1, 0.55, 1.0, 0.6, 0.2])
    assert optimizer.rate(clock(20), 64) == pytest.approx(0.25)
    assert OptimizerOptions(lr=1.0, warmup_epochs=0).rate(clock(50), 256) == pytest.approx(0.5)


def test_biases_and_norms_are_out_of_weight_decay_and_a_predictor_may_keep_its_rate() -> None:
    net = model()
    groups = parameter_groups(net, OptimizerOptions(lr=1.0, weight_decay=0.5, constant_predictor_lr=True))
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in net.parameters())
    predictor = {id(p) for p in net.online_map.parameters()}
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.5 if p.ndim > 1 else 0.0)
            assert group["constant"] == (id(p) in predictor)
    everything = parameter_groups(net, OptimizerOptions(lr=1.0, weight_decay=0.5, decay_all=True))
    assert {g["weight_decay"] for g in everything} == {0.5}


@pytest.mark.parametrize("decay_all", [True, False])
def test_no_weight_decay_reaches_a_learned_gain(decay_all: bool) -> None:
    model = build(
        "byol", backbone="resnet_tiny", online="learned", heads=Heads(projector=ProjectorOptions(widths=(16, 8)))
    )
    [raw] = [p for name, p in model.named_parameters() if name.endswith("gain.raw")]
    groups = parameter_groups(model, OptimizerOptions(lr=1.0, weight_decay=0.5, decay_all=decay_all))
    assert [g["weight_decay"] for g in groups if any(p is raw for p in g["params"])] == [0.0]


def test_the_optimiser_leaves_the_teacher_out() -> None:
    net = model("byol")
    assert net.teacher is not None
    owned = {id(p) for g in parameter_groups(net, OptimizerOptions(lr=1.0)) for p in g["params"]}
    assert not owned & {id(p) for p in net.teacher.parameters()}


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_every_optimiser_descends(name: Any) -> None:
    net = model()
    optimizer = build_optimizer(
        net, OptimizerOptions(name=name, lr={"sgd": 0.05, "lars": 0.2, "adamw": 1e-3}[name])
    )
    views = torch.randn(2, 32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = [float(out.loss.detach()) for out in descend(net, [views] * 8, optimizer, steps_per_epoch=8)]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("decay", [1e-2, 0.0])
def test_lars_scales_by_the_trust_ratio_but_leaves_biases_and_norms_alone(decay: float) -> None:
    """The clipped rate of solo-learn: min(eta |w| / (|g| + wd |w|), lr) (You et al. 2017, section 4)."""
    net, eta = model(), 0.02
    optimizer = build_optimizer(
        net, OptimizerOptions(name="lars", lr=0.5, weight_decay=decay, momentum=0.0, trust=eta)
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(torch.randn(2, 32, 1, 8, 8)).loss.backward()
    optimizer.step()
    for name, p in net.named_parameters():
        w, g = before[name], p.grad
        assert g is not None
        if p.ndim > 1:
            trust = min(eta * float(w.norm()) / float(g.norm() + decay * w.norm()) / 0.5, 1.0)
            expected = w - 0.5 * trust * (g + decay * w)
        else:
            expected = w - 0.5 * g
        assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["swav", "dino"])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_frozen_prototypes_do_not_move_and_then_begin_afresh(name: Any, method: str) -> None:
    net = model(method)
    assert net.online.prototypes is not None
    net.online.prototypes.freeze_epochs = 1
    weight = net.online.prototypes.weight
    start = weight.detach().clone()
    optimizer = build_optimizer(net, OptimizerOptions(name=name, lr=0.1, weight_decay=0.1, decay_all=True))
    views = torch.randn(2, 32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, _ in enumerate(descend(net, [views] * 5, optimizer, steps_per_epoch=4)):
        assert torch.equal(weight, start) is (step < 4)
        assert bool(optimizer.state[weight]) is (step == 4)  # neither momentum nor a count of steps before


def test_an_epoch_sees_each_image_at_most_once_in_an_order_of_its_own() -> None:
    images, _ = load_data("digits", limit=100)
    epochs = [EpochBatches(images, WORK, seed=1, step=3 * epoch) for epoch in (0, 1)]
    rows = [torch.cat(list(e.batches)) for e in epochs]
    assert [len(e) for e in epochs] == [3, 3]
    assert all(len(r.unique()) == len(r) == 96 for r in rows)
    assert not torch.equal(rows[0], rows[1])
    other = EpochBatches(images, WORK, seed=2, step=0)
    assert not torch.equal(torch.cat(list(other.batches)), rows[0])


def test_a_resumed_epoch_starts_at_its_next_batch_and_processes_share_each_batch() -> None:
    images, _ = load_data("digits", limit=100)
    whole, rest = (EpochBatches(images, WORK, seed=1, step=step) for step in (3, 4))
    assert torch.equal(torch.stack(list(rest.batches)), torch.stack(list(whole.batches))[1:])
    parts = [EpochBatches(images, WORK, seed=1, step=3, process=i, processes=2).batches[0] for i in (0, 1)]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.batches[0].tolist())


def test_a_row_of_metrics_is_the_reading_of_online_view_1_and_target_view_2() -> None:
    kept: list[Outputs] = []
    part = module(method="byol")
    part.model.register_forward_hook(lambda _, __, out: kept.append(out))
    fit(part)
    online, target = kept[-1].online[0], kept[-1].target[1]
    row = part.last_reading
    assert row["erank_online"] == pytest.approx(float(effective_rank(online)), rel=1e-5)
    assert row["erank_target"] == pytest.approx(float(effective_rank(target)), rel=1e-5)
    assert row["rank_difference"] == pytest.approx(row["erank_target"] - row["erank_online"])
    assert row["erank_online_features"] == pytest.approx(float(effective_rank(online, of="features")), rel=1e-5)
    assert row["loss"] == pytest.approx(float(kept[-1].loss.detach()))


def fit(part: SelfSupervised, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=part.work.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
        **options,
    )
    images, _ = load_data("digits", limit=part.work.images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(part, datamodule=TrainingData(images, part.work))
    return trainer


def test_a_seed_decides_every_number_of_a_run() -> None:
    first, second, other = module(), module(), module(seed=5)
    for part in (first, second, other):
        fit(part)
    assert first.step == WORK.steps == 12
    assert first.last_reading == second.last_reading
    assert first.last_reading["loss"] != other.last_reading["loss"]
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_predictor_s_rate_stays_while_the_others_fall() -> None:
    part = module()
    part.optimizer = OptimizerOptions(lr=0.8, warmup_epochs=0, constant_predictor_lr=True)
    rates = {g["constant"]: g["lr"] for g in fit(part).optimizers[0].param_groups}
    assert rates[True] == pytest.approx(0.8 * 32 / 256)
    assert rates[False] == pytest.approx(0.1 * (1 + math.cos(math.pi * 11 / 12)) / 2)


def test_a_trainer_that_accumulates_must_agree_with_the_clock() -> None:
    with pytest.raises(UserError, match=r"accumulates 2 batches per step, but the run's work says 1"):
        fit(module(Work(images=100, batch_size=32, epochs=1, features=128)), accumulate_grad_batches=2)


def test_a_loss_that_is_not_finite_stops_training_and_names_its_first_step() -> None:
    part = module(rank_every=5)

    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.step == 2:
                next(pl_module.model.parameters()).data.fill_(math.nan)

    with pytest.raises(NonFiniteError, match="not finite at step 2"):
        fit(part, callbacks=[Spoil()])
    assert part.step == 5


def test_weights_that_are_not_finite_are_found_before_a_loss_sees_them() -> None:
    part = module()
    part.check_finite(weights=True)
    nn.init.constant_(next(part.model.parameters()), math.inf)
    part.check_finite()
    with pytest.raises(NonFiniteError, match="weights"):
        part.check_finite(weights=True)


def test_the_control_collapses_and_an_asymmetric_design_does_not() -> None:
    """RDM's claim on digits: without asymmetry all outputs become one vector; a high-pass target prevents it."""
    work = Work(images=256, batch_size=64, epochs=10, features=128)
    control, filtered = module(work, lr=1.0), module(work, lr=1.0)
    control.model = model("siamese", output_norm="none").to(memory_format=torch.channels_last)
    filtered.model = model("siamese", output_norm="none", target="power:-0.5").to(
        memory_format=torch.channels_last
    )
    filtered.model.stop_gradient = True
    for part in (control, filtered):
        fit(part)
    assert control.last_reading["loss"] < -0.99
    assert control.last_reading["erank_online"] < 1.05
    assert abs(control.last_reading["rank_difference"]) < 0.05
    assert filtered.last_reading["rank_difference"] > 0.4
