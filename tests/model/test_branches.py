from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rankgap.model.alignments import centred_cosine, cosine, cross_entropy, regression, squared
from rankgap.model.branches import Branch, DualBranch
from rankgap.model.schedule import Clock


def tiny(momentum: float | None = None, *, stop_gradient: bool = True) -> DualBranch:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    return DualBranch(
        Branch(encoder, nn.Linear(6, 4)),
        nn.Linear(4, 4),
        lambda branch: nn.Identity(),
        cosine,
        momentum=momentum,
        stop_gradient=stop_gradient,
    )


def test_cosine_pairs_each_view_with_every_other() -> None:
    p, t = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    pairs = [torch.cosine_similarity(p[i], t[j]).mean() for i in range(3) for j in range(3) if i != j]
    assert_close(cosine(p, t), -torch.stack(pairs).mean())


def test_regression_is_the_squared_distance_of_unit_vectors_summed_over_both_orders() -> None:
    p, t = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    unit_p, unit_t = nn.functional.normalize(p, dim=-1), nn.functional.normalize(t, dim=-1)
    expected = sum((unit_p[i] - unit_t[1 - i]).square().sum(-1).mean() for i in (0, 1))
    assert_close(regression(p, t), torch.as_tensor(expected))


def test_squared_is_the_distance_of_what_is_not_normalised_summed_over_ordered_pairs() -> None:
    p, t = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    pairs = [(p[i] - t[j]).square().sum(-1).mean() for i in range(3) for j in range(3) if i != j]
    assert_close(squared(p, t), torch.stack(pairs).sum())


def test_centred_cosine_gives_a_constant_direction_nothing() -> None:
    p = torch.randn(2, 50, 5)
    assert_close(centred_cosine(p, p.flip(0)), centred_cosine(p + 100, p.flip(0) + 100), rtol=1e-3, atol=1e-4)
    assert cosine(p + 100, p + 100) < -0.99


def test_cross_entropy_by_hand_and_at_a_zero_probability() -> None:
    p = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]])
    t = torch.tensor([[[1.0, 0.0]], [[0.25, 0.75]]])
    assert_close(cross_entropy(p, t), torch.tensor((math.log(2) + 0.0) / 2))
    assert torch.isfinite(cross_entropy(p.flip(0), t))


def test_uniform_assignment_costs_ln_k() -> None:
    uniform = torch.full((2, 4, 512), 1 / 512)
    assert float(cross_entropy(uniform, uniform)) == pytest.approx(6.238, abs=1e-3)


def test_outputs_have_the_contract_s_shapes_from_a_tensor_and_from_a_list() -> None:
    model, views = tiny(), torch.randn(2, 8, 3, 2, 2)
    out, again = model(views), model(list(views))
    assert (out.online.shape, out.target.shape, out.features.shape) == ((2, 8, 4), (2, 8, 4), (2, 8, 6))
    assert_close(out.loss, again.loss)


def test_the_target_is_a_constant_unless_the_method_is_symmetric() -> None:
    views = torch.randn(2, 8, 3, 2, 2)
    assert not tiny()(views).target.requires_grad
    assert not tiny(0.9)(views).target.requires_grad
    assert tiny(stop_gradient=False)(views).target.requires_grad


def test_shared_weights_give_the_same_gradient_as_a_detached_target_written_out() -> None:
    model, views = tiny(), torch.randn(2, 8, 3, 2, 2)
    model(views).loss.backward()
    got = model.online.projector.module.weight.grad
    assert isinstance(got, torch.Tensor)
    other = tiny()
    z = other.online(views)[1]
    cosine(other.online_map(z), z.detach()).backward()
    expected = other.online.projector.module.weight.grad
    assert isinstance(expected, torch.Tensor)
    assert_close(got, expected)


def test_the_teacher_is_the_exponential_mean_of_parameters_and_keeps_its_own_buffers() -> None:
    model = tiny(0.9)
    assert model.teacher is not None
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.online.parameters():
            p.add_(1.0)
    batch_norm = model.online.encoder.get_submodule("2")
    assert isinstance(batch_norm, nn.BatchNorm1d)
    assert batch_norm.running_mean is not None
    batch_norm.running_mean.fill_(7.0)
    clock = Clock(step=50, steps=100, steps_per_epoch=10)
    momentum = model.momentum_at(clock)
    assert momentum == pytest.approx(0.95)
    model.update_teacher(clock)
    for old, online, new in zip(before, model.online.parameters(), model.teacher.parameters(), strict=True):
        assert_close(new, momentum * old + (1 - momentum) * online)
    teacher_norm = model.teacher.encoder.get_submodule("2")
    assert isinstance(teacher_norm, nn.BatchNorm1d)
    assert teacher_norm.running_mean is not None
    assert float(teacher_norm.running_mean.abs().max()) < 7.0


def test_momentum_goes_from_its_base_to_one() -> None:
    model = tiny(0.99)
    ends = [model.momentum_at(Clock(step=s, steps=100, steps_per_epoch=10)) for s in (0, 100)]
    assert ends == pytest.approx([0.99, 1.0])
    assert tiny().momentum_at(Clock(step=0, steps=1, steps_per_epoch=1)) == 0.0


def test_the_teacher_gets_no_gradient() -> None:
    model = tiny(0.9)
    model(torch.randn(2, 8, 3, 2, 2)).loss.backward()
    assert model.teacher is not None
    assert all(p.grad is None for p in model.teacher.parameters())
    assert model.encoder("target") is model.teacher.encoder
    assert tiny().encoder("target") is not None
