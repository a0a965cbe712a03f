"""Where a step ends, and which outputs belong to it, in the loops that people write."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.checkpoint import checkpoint

from rankgap.spectra.effective_rank import effective_rank
from rankgap.watch.monitor import RankMonitor
from tests.processes import needs_distributed, run_on_processes


class Net(nn.Module):
    """A projector and a predictor, with a layer that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Dropout(0.1))
        self.predictor = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(x)
        return self.predictor(z), z


def images(seed: int, rows: int = 32) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Callable[[Tensor], tuple[Tensor, Tensor]], seed: int, rows: int = 32) -> Tensor:
    (p1, z1), (p2, z2) = (model(images(seed, rows) + 0.1 * images(seed + 100 + i, rows)) for i in (0, 1))
    return -(torch.cosine_similarity(p1, z2.detach()) + torch.cosine_similarity(p2, z1.detach())).mean()


def train(*, watched: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Losses, gradients and the random state of a short training."""
    model, losses, gradients = Net(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RankMonitor(model if watched else None, every=1, strict=True)
    torch.manual_seed(1)
    with monitor:
        for step in range(4):
            loss = loss_of(model, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(monitor.history) == 4 * watched
    return losses, gradients, torch.get_rng_state()


def test_losses_gradients_and_random_states_are_those_of_an_unwatched_training() -> None:
    bare, watched = train(watched=False), train(watched=True)
    for a, b in zip(bare[0] + bare[1] + [bare[2]], watched[0] + watched[1] + [watched[2]], strict=True):
        assert torch.equal(a, b)


def test_a_skipped_step_leaves_nothing_behind() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        loss = loss_of(model, 0)  # not finite, say: it is kept while the next one is computed
        for seed in range(1, 4):
            loss = loss_of(model, seed, rows=16)
            loss.backward()
    assert monitor.step == 3
    assert [r.rows for r in monitor.history] == [16] * 3


def test_the_rows_of_a_skipped_step_do_not_meet_those_of_the_next() -> None:
    model = Net().eval()  # without dropout
    with RankMonitor(model, every=1, strict=True) as monitor:
        skipped = loss_of(model, 0)
        loss_of(model, 1).backward()
    with RankMonitor(model, every=1, strict=True) as alone:
        loss_of(model, 1).backward()
    assert monitor.history == alone.history
    assert skipped.requires_grad


def test_two_backward_passes_of_one_forward_pass_are_one_step() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        (p1, z1), (p2, z2) = model(images(0)), model(images(1))
        (p1 * z2.detach()).mean().backward(retain_graph=True)
        (p2 * z1.detach()).mean().backward()
        loss = loss_of(model, 0)
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
    assert [r.step for r in monitor.history] == [0, 1]
    assert monitor.compute().rows == 64


def test_several_forward_passes_before_one_backward_pass_are_one_step() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        sum((loss_of(model, seed) for seed in range(3)), torch.tensor(0.0)).backward()
    assert [(r.step, r.rows) for r in monitor.history] == [(0, 32)]


def test_accumulated_batches_are_steps() -> None:
    model = Net()
    with RankMonitor(model, every=2, strict=True) as monitor:
        for seed in range(4):
            (loss_of(model, seed) / 2).backward()
    assert [r.step for r in monitor.history] == [0, 2]


def test_an_error_in_the_middle_of_a_backward_pass_does_not_stop_the_watching() -> None:
    model = Net()

    def failed(gradient: Tensor) -> None:
        raise KeyError

    with RankMonitor(model, every=1, strict=True) as monitor:
        p, z = model(images(0))
        z.register_hook(failed)
        with pytest.raises(KeyError):
            (p * z.detach()).mean().backward()
        for seed in range(2):
            loss_of(model, seed, rows=16).backward()
    assert [r.rows for r in monitor.history] == [16, 16]


@pytest.mark.parametrize("evaluating", [False, True])
def test_an_evaluation_inside_a_step_is_not_part_of_it(evaluating: bool) -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        loss = loss_of(model, 0)
        model.train(not evaluating)
        with torch.no_grad():
            for seed in range(3):
                model(images(seed, rows=7))
        model.train()
        loss.backward()
    assert [(r.step, r.rows) for r in monitor.history] == [(0, 32)]
    assert not monitor.skipped


def test_an_evaluation_between_steps_is_not_kept() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        loss_of(model, 0).backward()
        model.eval()
        with torch.no_grad():
            model(images(0))
        assert not monitor._outputs["target"]
        model.train()
        loss_of(model, 1).backward()
    assert [r.rows for r in monitor.history] == [32, 32]


def test_views_that_the_loss_leaves_out_are_no_skipped_step() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        z = [model.projector(images(i, rows)) for i, rows in enumerate((32, 32, 8, 8))]
        p = [model.predictor(view) for view in z]
        (p[0] * z[1].detach()).mean().backward()
    assert (monitor.history[0].rows, monitor.skipped) == (32, {})


def test_a_frozen_head_in_evaluation_mode_is_read() -> None:
    model = Net()
    model.predictor.eval()
    with RankMonitor(model, every=1, strict=True) as monitor:
        loss_of(model, 0).backward()
    assert monitor.history[0].rows == 32


class Bgrl(nn.Module):
    """An online network and a target network, called q1, y2, q2, y1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(24, 32), nn.PReLU(), nn.Linear(32, 16))
        self.target_encoder = copy.deepcopy(self.encoder)
        self.predictor = nn.Sequential(nn.Linear(16, 32), nn.PReLU(), nn.Linear(32, 16))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        q1 = self.predictor(self.encoder(x1))
        with torch.no_grad():
            y2 = self.target_encoder(x2)
        q2 = self.predictor(self.encoder(x2))
        with torch.no_grad():
            y1 = self.target_encoder(x1)
        return q1, y2, q2, y1


@pytest.mark.parametrize("pair", ["opposite", "same"])
def test_bgrl_s_order_of_calls_is_seen(pair: Any) -> None:
    model = Bgrl()
    x = images(0, rows=100)
    x1, x2 = (x + 0.3 * images(seed, rows=100) for seed in (1, 2))
    with RankMonitor(model, "predictor", "target_encoder", every=1, pair=pair, strict=True) as monitor:
        q1, y2, q2, y1 = model(x1, x2)
        (torch.cosine_similarity(q1, y2) + torch.cosine_similarity(q2, y1)).mean().backward()
    wanted = y2 if pair == "opposite" else y1
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(q1)), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(wanted)), rel=1e-5)


def test_unlike_numbers_of_stacked_views_are_told_apart() -> None:
    """As DINO runs its heads: ten crops of the student in one call, two of the teacher."""
    model = nn.ModuleDict({"student": nn.Linear(24, 16), "teacher": nn.Linear(24, 16)})
    crops = torch.cat([images(0) + 0.1 * images(seed) for seed in range(10)])
    with RankMonitor(model, "student", "teacher", every=1, stacked=(10, 2), strict=True) as monitor:
        with torch.no_grad():
            t = model["teacher"](crops[:64])
        s = model["student"](crops)
        (s.mean() - t.mean()).square().backward()
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(s[:32])), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(t[32:])), rel=1e-5)
    with RankMonitor(model, "student", "teacher", every=1, strict=True) as together:
        model["teacher"](crops[:64])
        model["student"](crops).square().mean().backward()
    assert together.history[0].rows == 64
    assert together.skipped == {
        "alignment, filter and transfer": "online views are (320, 16), target views (64, 16)"
    }
    even = s[torch.arange(64) * 5]
    assert together.history[0].erank_online == pytest.approx(float(effective_rank(even)), rel=1e-5)


def test_branches_of_unlike_widths_have_ranks_all_the_same() -> None:
    model = nn.ModuleDict({"predictor": nn.Linear(24, 5), "projector": nn.Linear(24, 9)})
    with RankMonitor(model, every=1, strict=True) as monitor:
        z, p = model["projector"](images(0)), model["predictor"](images(1))
        (p.mean() * z.detach().mean()).backward()
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(p)), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(z)), rel=1e-5)
    assert "alignment, filter and transfer" in monitor.skipped


def test_what_the_loss_sees_is_read() -> None:
    model = Net()
    centre = torch.randn(16)
    then = (lambda z: (z / 0.1).softmax(-1), lambda z: ((z - centre) / 0.04).softmax(-1))
    with RankMonitor(model, every=1, then=then, strict=True) as monitor:
        (p1, z1), (p2, z2) = model(images(0)), model(images(0))
        (p1.square().mean() + p2.square().mean() + z1.mean() + z2.mean()).backward()
    assert monitor.history[0].assignment is not None
    wanted = effective_rank(((z2 - centre) / 0.04).softmax(-1))
    assert monitor.history[0].erank_target == pytest.approx(float(wanted), rel=1e-4)


def test_a_step_without_a_backward_pass_is_ended_by_hand() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor, torch.no_grad():
        for seed in range(3):
            model(images(seed)), model(images(seed + 1))
            assert monitor.step() == monitor.diagnosis
    assert monitor.step == 3
    assert [(r.step, r.rows) for r in monitor.history] == [(0, 32), (1, 32), (2, 32)]


def test_a_step_is_not_ended_twice() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        for seed in range(2):
            loss_of(model, seed).backward()
            monitor.step()
    assert monitor.step == 2


def test_gradients_of_torch_func_are_steps() -> None:
    model = Net()
    model.projector = nn.Sequential(nn.Linear(24, 16))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with RankMonitor(model, every=1, strict=True) as monitor:
        for seed in range(3):
            torch.func.grad(
                lambda w, seed=seed: loss_of(lambda x: torch.func.functional_call(model, w, (x,)), seed)
            )(weights)
    assert [(r.step, r.rows) for r in monitor.history] == [(0, 32), (1, 32), (2, 32)]
    assert monitor.compute().rows == 96


def test_modules_themselves_can_be_given() -> None:
    online, target = nn.Linear(24, 8), nn.Linear(24, 8)
    with RankMonitor(online=online, target=target, every=1, strict=True) as monitor:
        target(images(0))
        online(images(0)).mean().backward()
    assert len(monitor.history) == 1


# Wrappers


def compiled(net: Net) -> Any:
    return torch.compile(net, backend="eager")


WRAPPERS: list[Callable[[Net], Any]] = [
    nn.DataParallel,
    torch.optim.swa_utils.AveragedModel,
    compiled,
    lambda net: compiled(nn.DataParallel(net)),  # type: ignore[arg-type]
]


dynamo_warns = pytest.mark.filterwarnings("ignore")  # Dynamo has many, and cannot trace where they are errors


@dynamo_warns
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_modules_are_found_by_the_names_of_the_bare_model(wrap: Callable[[Net], Any]) -> None:
    model = wrap(Net())
    with RankMonitor(model, every=1, strict=True) as monitor:
        for seed in range(3):
            loss_of(model, seed).backward()
    assert [r.rows for r in monitor.history] == [32] * 3


@dynamo_warns
def test_what_is_compiled_in_part_or_while_it_is_watched_is_found_too() -> None:
    torch._dynamo.reset()
    part = Net()
    part.predictor = compiled(part.predictor)  # type: ignore[arg-type]
    with RankMonitor(part, every=1, strict=True) as monitor:
        loss_of(part, 0).backward()
    assert len(monitor.history) == 1
    later = Net()
    with RankMonitor(later, every=1, strict=True) as monitor:
        for seed in range(2):
            loss_of(compiled(later), seed).backward()
    assert len(monitor.history) == 2


@dynamo_warns
def test_a_model_that_was_compiled_too_early_is_named() -> None:
    torch._dynamo.reset()
    model = compiled(Net())
    loss_of(model, 0)
    with (
        pytest.warns(UserWarning, match=r"must be there before torch\.compile's first call"),
        RankMonitor(model, every=1) as monitor,
    ):
        loss_of(model, 0).backward()
    assert not monitor.history


def test_checkpointed_layers_and_half_precision_are_read() -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu")
    with RankMonitor(model, every=1, strict=True) as monitor:
        with torch.autocast("cpu", torch.bfloat16):
            z = [checkpoint(model.projector, images(seed), use_reentrant=False) for seed in (0, 1)]
            p = [checkpoint(model.predictor, view, use_reentrant=False) for view in z]
        scaler.scale((p[0] * z[1].detach()).mean() + (p[1] * z[0].detach()).mean()).backward()
    assert [(r.step, r.rows, r.finite) for r in monitor.history] == [(0, 32, True)]


def under_fsdp(process: int) -> None:
    torch.manual_seed(0)
    first = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"))
    second = Net()
    for part in (second.projector, second.predictor, second):
        fully_shard(part)
    for model in (first, second):
        with RankMonitor(model, every=1, strict=True) as monitor:
            for seed in range(2):
                loss_of(model, 2 * seed + process).backward()
        assert [r.rows for r in monitor.history] == [32, 32]
        assert monitor.compute().rows == 128


@needs_distributed
@pytest.mark.slow
def test_sharded_models_are_read(tmp_path: Path) -> None:
    run_on_processes(under_fsdp, tmp_path)


# Copies


def test_copies_and_files_of_a_watched_model_are_not_watched() -> None:
    model = Net()
    with RankMonitor(model, every=1, strict=True) as monitor:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for other in (twin, torch.load(file, weights_only=False)):
            loss_of(other, 0).backward()
        assert monitor.step == 0
        loss_of(model, 0).backward()
    assert monitor.step == 1


def test_a_target_is_followed_at_once_and_the_online_outputs_at_the_step_s_end() -> None:
    """As DINO's centre moves in the loss, after the target was seen."""
    model, seen = Net(), []

    def note(side: str) -> Callable[[Tensor], Tensor]:
        return lambda z: seen.append(side) or z  # type: ignore[func-returns-value]

    with RankMonitor(model, every=1, then=(note("online"), note("target")), strict=True):
        loss = loss_of(model, 0)
        assert seen == ["target"] * 2
        loss.backward()
    assert seen == ["target"] * 2 + ["online"] * 2
