from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.model.alignments import cross_entropy
from rankgap.model.assignments import (
    Assignment,
    AssignmentOptions,
    CentredAssignment,
    CentredAssignmentOptions,
    SinkhornCodes,
    SinkhornOptions,
    sinkhorn,
)
from rankgap.model.maps import Place
from rankgap.model.mlp import PerView, mlp, per_view
from rankgap.model.prototypes import PrototypeOptions, Prototypes
from rankgap.model.schedule import Clock


def place(prototypes: Prototypes) -> Place:
    return Place(side="target", dim=prototypes.weight.shape[1], prototypes=prototypes)


def clock(step: int, steps: int = 100, steps_per_epoch: int = 10) -> Clock:
    return Clock(step=step, steps=steps, steps_per_epoch=steps_per_epoch)


def test_mlp_has_norms_and_activations_between_layers_only() -> None:
    kinds = [type(m).__name__ for m in mlp((4, 8, 8, 2), output_norm="batch")]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    last = mlp((4, 8, 2), output_norm="batch")[-1]
    assert isinstance(last, torch.nn.BatchNorm1d)
    assert not last.affine


def test_mlp_layers_are_distinct() -> None:
    layers = mlp((4, 8, 8, 8, 2))
    assert len({id(m) for m in layers}) == len(layers)


def test_mlp_of_one_width_is_refused() -> None:
    with pytest.raises(UserError, match="input and an output"):
        mlp((4,))


def test_per_view_gives_each_view_its_own_batch_statistics() -> None:
    z = torch.randn(2, 64, 3) * torch.tensor([1.0, 10.0]).view(2, 1, 1) + 5
    out = PerView(torch.nn.BatchNorm1d(3, affine=False))(z)
    assert_close(out.mean(1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert_close(out.var(1, correction=0), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_views_pass_together_where_no_batch_norm_would_see_both() -> None:
    z = torch.randn(2, 4, 3)
    norms: list[tuple[nn.Module, list[int]]] = [(nn.LayerNorm(3), [8]), (nn.BatchNorm1d(3), [4, 4])]
    for norm, rows in norms:
        seen: list[int] = []
        norm.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        out = PerView(nn.Sequential(norm))(z)
        assert seen == rows
        assert_close(out, torch.stack([norm(view) for view in z]))
        assert_close(out, per_view(norm, list(z)))


def test_sinkhorn_of_one_iteration_by_hand() -> None:
    # exp(scores / 1) = [[1, 2], [3, 2]]: columns sum to 4 and 4 -> [[1/4, 1/2], [3/4, 1/2]];
    # rows sum to 3/4 and 5/4 -> [[1/3, 2/3], [3/5, 2/5]].
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).log()
    expected = torch.tensor([[1 / 3, 2 / 3], [3 / 5, 2 / 5]])
    assert_close(sinkhorn(scores, eps=1.0, iterations=1), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40),
    k=st.integers(2, 20),
    views=st.integers(1, 3),
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.05, 0.2, 1.0]),
)
def test_sinkhorn_tends_to_its_marginals(n: int, k: int, views: int, seed: int, eps: float) -> None:
    scores = torch.rand(views, n, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    codes = sinkhorn(scores, eps=eps, iterations=2000)
    assert_close(codes.sum(-1), torch.ones(views, n))
    assert_close(codes.sum(-2), torch.full((views, k), n / k), rtol=0.05, atol=0.0)


def test_sinkhorn_balances_each_view_by_itself_and_survives_shifts() -> None:
    scores = torch.rand(2, 8, 4)
    both = sinkhorn(scores)
    assert_close(both[1], sinkhorn(scores[1]))
    assert_close(both, sinkhorn(scores + 30), rtol=1e-3, atol=1e-5)


def test_prototypes_give_cosines() -> None:
    prototypes = Prototypes(4, PrototypeOptions(count=6))
    z = torch.randn(3, 5, 4)
    expected = torch.cosine_similarity(z.unsqueeze(-2), prototypes.weight, dim=-1)
    assert_close(prototypes(z), expected)


def test_prototypes_are_frozen_at_first_then_move() -> None:
    prototypes = Prototypes(4, PrototypeOptions(count=6, freeze_epochs=1))
    for step, moves in ((0, False), (9, False), (10, True)):
        prototypes.prepare(clock(step))
        prototypes.zero_grad()
        z = torch.randn(5, 4, requires_grad=True)
        prototypes(z).square().sum().backward()
        assert (prototypes.weight.grad is not None) is moves
        assert z.grad is not None


def test_assignment_is_a_softmax_of_cosines_over_the_temperature() -> None:
    prototypes = Prototypes(4, PrototypeOptions(count=6))
    z = torch.randn(2, 5, 4)
    given = Assignment(place(prototypes), AssignmentOptions(temperature=0.1))(z)
    assert_close(given.probabilities, torch.softmax(prototypes(z) / 0.1, -1))
    assert_close(given.logs, given.probabilities.log())


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02, 0.004])
def test_the_cross_entropy_s_gradient_is_the_softmax_minus_the_target_at_any_temperature(
    temperature: float,
) -> None:
    """DINO's and SwAV's own loss, -sum q log_softmax(scores / t): d/dscores = (softmax - q) / t."""
    prototypes = Prototypes(4, PrototypeOptions(count=6))
    z = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.softmax(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)), -1)
    logits = (prototypes(z) / temperature).double()
    by_hand = -(target.double() * torch.log_softmax(logits.flip(0), -1)).sum(-1).mean()
    given = Assignment(place(prototypes), AssignmentOptions(temperature=temperature))(z)
    loss = cross_entropy(given, target)
    assert_close(loss.double(), by_hand, rtol=1e-6, atol=0)
    (found,), (wanted,) = (torch.autograd.grad(x, z) for x in (loss, by_hand))
    assert wanted.abs().max() > 0.01
    assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    if temperature >= 0.1:  # where float32 rounds nothing to 0, the logarithm of P says the same
        assert_close(cross_entropy(given.probabilities, target), loss, rtol=1e-6, atol=0)


def test_the_queue_waits_until_it_is_due_and_full_then_shapes_the_codes() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(4, PrototypeOptions(count=3))
    codes = SinkhornCodes(place(prototypes), SinkhornOptions(queue=8, queue_epochs=0.4))
    batches = [torch.randn(2, 4, 4) for _ in range(5)]
    for step, z in enumerate(batches):
        codes.prepare(clock(step))
        out = codes(z)
        alone = sinkhorn(prototypes(z))
        if step < 4:  # full after two batches of four, but due only from epoch 0.4
            assert_close(out, alone)
        else:
            rows = torch.cat([z, batches[3], batches[2]], dim=1)
            assert_close(out, sinkhorn(prototypes(rows))[:, :4])
            assert not torch.allclose(out, alone)
    assert_close(codes.queue, torch.cat([batches[4], batches[3]], dim=1))


def test_the_queue_stays_as_it_is_in_evaluation() -> None:
    codes = SinkhornCodes(place(Prototypes(4, PrototypeOptions(count=3))), SinkhornOptions(queue=8)).eval()
    codes(torch.randn(2, 4, 4))
    assert codes.queue.abs().sum() == 0


def test_dino_centres_by_the_past_and_sharpens_by_hand() -> None:
    prototypes = Prototypes(2, PrototypeOptions(count=2))
    prototypes.weight.data = torch.eye(2)
    target = CentredAssignment(place(prototypes), CentredAssignmentOptions(temperature=0.5, warmup_epochs=0))
    target.prepare(clock(0))
    z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])  # scores are z itself
    first = target(z)
    a = 1 / (1 + math.exp(-2.0))  # softmax((1, 0) / 0.5)
    assert_close(first[0, 0], torch.tensor([a, 1 - a]))
    # mean of the scores over all views: (2/3, 1/3); centre = 0.9 * 0 + 0.1 * that
    assert_close(target.centre, torch.tensor([2 / 30, 1 / 30]))
    second = target(z)
    b = 1 / (1 + math.exp(-((1 - 2 / 30) - (0 - 1 / 30)) / 0.5))
    assert_close(second[0, 0], torch.tensor([b, 1 - b]))


def test_dino_temperature_warms_up_linearly_then_stays() -> None:
    target = CentredAssignment(
        place(Prototypes(2, PrototypeOptions(count=2))),
        CentredAssignmentOptions(temperature=0.07, warmup_temperature=0.04, warmup_epochs=5),
    )
    seen = []
    for step in (0, 25, 50, 90):
        target.prepare(clock(step))
        seen.append(target.temperature)
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_dino_centre_stays_in_evaluation() -> None:
    target = CentredAssignment(place(Prototypes(4, PrototypeOptions(count=3))), CentredAssignmentOptions()).eval()
    target(torch.randn(2, 4, 4))
    assert target.centre.abs().sum() == 0
