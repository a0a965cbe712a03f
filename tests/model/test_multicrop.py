"""Views of several sizes, some of which the target does not see, against the published losses written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.model.alignments import ALIGNMENTS, outputs_of
from rankgap.model.assembly import assemble
from rankgap.model.assignments import AssignmentOptions, CentredAssignmentOptions, SinkhornOptions
from rankgap.model.branches import DualBranch
from rankgap.model.heads import Heads
from rankgap.model.methods import METHODS, design
from rankgap.model.mlp import ProjectorOptions, per_view
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.model.schedule import Clock

B, GLOBAL, LOCAL, WIDTH, K = 6, 2, 3, 4, 7
TEMPERATURE, EPS, SHARP, MEMORY = 0.1, 0.05, 0.05, 0.9


class Small(nn.Module):
    """A network without batch norm that takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.features = nn.Conv2d(3, 5, 3), 5

    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(self.conv(images)).mean((2, 3))


def model(method: str, *, queue: int = 0, views: int = GLOBAL + LOCAL, targets: int | None = GLOBAL) -> DualBranch:
    torch.manual_seed(0)
    heads = Heads(
        projector=ProjectorOptions(widths=(8, WIDTH), norm=False, activation="gelu"),
        prototypes=PrototypeOptions(count=K),
        online={
            "assignment": AssignmentOptions(temperature=TEMPERATURE),
            "predictor": PredictorOptions(widths=(8,)),
        },
        target={
            "sinkhorn": SinkhornOptions(eps=EPS, queue=queue),
            "centred_assignment": CentredAssignmentOptions(
                temperature=SHARP, warmup_temperature=SHARP, momentum=MEMORY
            ),
        },
    )
    made = assemble(design(method), Small(), heads, features=5, views=views, targets=targets)
    return made.double().train()


def views(seed: int = 0) -> list[Tensor]:
    """Two large views and three local ones, float64."""
    generator = torch.Generator().manual_seed(seed)
    sides = [12] * GLOBAL + [7] * LOCAL
    return [torch.randn(B, 3, side, side, generator=generator, dtype=torch.float64) for side in sides]


def scores(weights: dict[str, Tensor], view: Tensor) -> Tensor:
    """Cosines with the prototypes (B, K), from a branch's weights by name."""
    h = F.gelu(F.conv2d(view, weights["encoder.conv.weight"], weights["encoder.conv.bias"])).mean((2, 3))
    h = F.gelu(F.linear(h, weights["projector.module.0.weight"], weights["projector.module.0.bias"]))
    z = F.linear(h, weights["projector.module.2.weight"], weights["projector.module.2.bias"])
    found: Tensor = F.normalize(z, dim=1) @ F.normalize(weights["prototypes.weight"], dim=1).T
    return found


def codes(rows: Tensor) -> Tensor:
    """SwAV's codes (N, K) as its authors compute them: K x N, in turn over prototypes and images, three times."""
    q = (rows / EPS).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def swav_loss(weights: dict[str, Tensor], given: list[Tensor]) -> Tensor:
    """SwAV with multi-crop, as its authors' loop: codes of the large views, predicted from every other view."""
    each = [scores(weights, view) for view in given]
    loss = torch.zeros((), dtype=torch.float64)
    for large in range(GLOBAL):
        q = codes(each[large].detach())
        others = [v for v in range(len(given)) if v != large]
        for v in others:
            loss = loss - (q * F.log_softmax(each[v] / TEMPERATURE, dim=1)).sum(1).mean() / len(others)
    return loss / GLOBAL


def dino_loss(
    weights: dict[str, Tensor], teacher: dict[str, Tensor], centre: Tensor, given: list[Tensor]
) -> Tensor:
    """DINO's eq. 3 over all pairs of a large view, seen by the teacher, and another view, seen by the student."""
    loss, pairs = torch.zeros((), dtype=torch.float64), 0
    for large in range(GLOBAL):
        q = F.softmax((scores(teacher, given[large]).detach() - centre) / SHARP, dim=1)
        for v in range(len(given)):
            if v != large:
                loss = loss - (q * F.log_softmax(scores(weights, given[v]) / TEMPERATURE, dim=1)).sum(1).mean()
                pairs += 1
    return loss / pairs


def leaves(branch: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in branch.named_parameters()}


def check_gradients(ours: DualBranch, reference: dict[str, Tensor], loss: Tensor) -> None:
    expected = torch.autograd.grad(loss, list(reference.values()))
    found = dict(ours.online.named_parameters())
    assert found.keys() == reference.keys()
    for name, gradient in zip(reference, expected, strict=True):
        assert gradient.abs().max() > 1e-6, f"{name}: a gradient of zero would test nothing"
        given = found[name].grad
        assert given is not None
        assert_close(given, gradient, rtol=0, atol=1e-9)


def test_a_step_of_swav_is_the_published_one() -> None:
    ours, given = model("swav"), views()
    out = ours(given)
    out.loss.backward()
    reference = leaves(ours.online)
    expected = swav_loss(reference, given)
    assert (out.online.shape, out.target.shape) == ((GLOBAL + LOCAL, B, K), (GLOBAL, B, K))
    assert_close(out.loss, expected, rtol=0, atol=1e-10)
    check_gradients(ours, reference, expected)


def test_two_steps_of_dino_are_the_published_ones() -> None:
    ours = model("dino")
    clock = Clock(step=3, steps=10, steps_per_epoch=5)
    centre = torch.zeros(K, dtype=torch.float64)
    assert ours.teacher is not None
    for step in range(2):
        given = views(step)
        ours.prepare(clock)
        ours.zero_grad()
        out = ours(given)
        out.loss.backward()
        reference, teacher = leaves(ours.online), leaves(ours.teacher)
        expected = dino_loss(reference, teacher, centre, given)
        assert_close(out.loss, expected, rtol=0, atol=1e-10)
        check_gradients(ours, reference, expected)
        seen = torch.cat([scores(teacher, view) for view in given[:GLOBAL]]).detach()
        centre = MEMORY * centre + (1 - MEMORY) * seen.mean(0)
        with torch.no_grad():
            for p in ours.online.parameters():
                assert p.grad is not None
                p.sub_(p.grad, alpha=0.5)
        ours.update_teacher(clock)
        tau = (
            1
            - (1 - ours.momentum_at(Clock(step=0, steps=10, steps_per_epoch=5)))
            * (math.cos(math.pi * clock.step / clock.steps) + 1)
            / 2
        )
        for name, p in ours.teacher.named_parameters():
            moved = tau * teacher[name] + (1 - tau) * ours.online.get_parameter(name)
            assert_close(p, moved, rtol=0, atol=1e-12)


def test_the_queue_holds_embeddings_of_the_large_views_alone() -> None:
    ours = model("swav", queue=2 * B)
    ours(views())
    queue = dict(ours.named_buffers())["target_map.0.queue"]
    assert queue.shape == (GLOBAL, 2 * B, WIDTH)
    embeddings = ours.online(views())[1]
    assert_close(queue[:, :B], embeddings[:GLOBAL].detach())
    assert not queue[:, B:].any()


def test_the_teacher_sees_the_large_views_alone() -> None:
    ours, seen = model("dino"), []
    assert ours.teacher is not None
    ours.teacher.encoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    ours(views())
    assert seen == [(GLOBAL * B, 3, 12, 12)]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_an_alignment_is_its_mean_over_pairs_with_a_target_view(alignment: str) -> None:
    """Local views enter the mean; the scale is that of two views, so that a learning rate keeps its meaning."""
    p, t = (
        torch.rand(5, B, K, dtype=torch.float64).softmax(-1),
        torch.rand(2, B, K, dtype=torch.float64).softmax(-1),
    )
    loss = ALIGNMENTS[alignment]
    centred = [z - z.mean(1, keepdim=True) for z in (p, t)] if alignment == "centred_cosine" else [p, t]
    one: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cosine": lambda a, b: -F.cosine_similarity(a, b, dim=-1),
        "centred_cosine": lambda a, b: -F.cosine_similarity(a, b, dim=-1),
        "regression": lambda a, b: 2 * (2 - 2 * F.cosine_similarity(a, b, dim=-1)),
        "squared": lambda a, b: 2 * (a - b).square().sum(-1),
        "cross_entropy": lambda a, b: -(b * a.log()).sum(-1),
    }
    pairs = [one[alignment](centred[0][v], centred[1][g]).mean() for v in range(5) for g in range(2) if v != g]
    assert len(pairs) == 8
    assert_close(loss(p, t), torch.stack(pairs).mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_row_takes_local_views(method: str) -> None:
    ours = model(method)
    ours.prepare(Clock(step=0, steps=10, steps_per_epoch=5))
    out = ours(views())
    out.loss.backward()
    assert out.online.shape[0] == out.features.shape[0] == GLOBAL + LOCAL
    assert out.target.shape[0] == GLOBAL
    assert outputs_of(out.online).isfinite().all()
    assert all(p.grad is not None for p in ours.online.encoder.parameters())


def test_views_of_one_size_pass_together_and_each_alone_gives_the_same() -> None:
    network, given, seen = Small().double(), views(), []
    network.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    together = per_view(network, given)
    assert seen == [GLOBAL * B, LOCAL * B]
    assert_close(together, torch.stack([network(view) for view in given]), rtol=0, atol=1e-12)


def test_batch_norm_sees_each_local_view_alone() -> None:
    network, seen = nn.Sequential(Small(), nn.BatchNorm1d(5)).double(), []
    network.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    given = views()
    out = per_view(network, given)
    assert seen == [B] * (GLOBAL + LOCAL)
    assert_close(out.mean(1), torch.zeros(GLOBAL + LOCAL, 5, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("count", "seen"), [(1, None), (2, 3), (2, 0)])
def test_an_impossible_number_of_views_is_refused(count: int, seen: int | None) -> None:
    with pytest.raises(UserError, match="two views or more, of which the target branch sees at least one"):
        model("swav", views=count, targets=seen)
