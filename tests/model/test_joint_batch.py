from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from rankgap.model.alignments import centred_cosine
from rankgap.model.assignments import SinkhornCodes, SinkhornOptions
from rankgap.model.joint_norm import JointBatchNorm, join_norms
from rankgap.model.maps import Place
from rankgap.model.prototypes import PrototypeOptions, Prototypes
from rankgap.model.schedule import Clock
from rankgap.spectra.processes import gather_rows, joint_mean, own_share, world_max
from tests.matrices import gaussian
from tests.processes import WORLD, needs_distributed, run_on_processes

ROWS, CHANNELS = 12, 5


def norms() -> list[tuple[_BatchNorm, tuple[int, ...]]]:
    """Norms, and the shape of an image behind its channels."""
    return [
        (nn.BatchNorm1d(CHANNELS), ()),
        (nn.BatchNorm1d(CHANNELS, affine=False), (3,)),
        (nn.BatchNorm2d(CHANNELS, momentum=None), (4, 4)),
        (nn.BatchNorm2d(CHANNELS, track_running_stats=False), (4, 4)),
        (BatchNormAct2d(CHANNELS), (4, 4)),
    ]


def compare_norm(process: int, norm: _BatchNorm, shape: tuple[int, ...]) -> None:
    """Value, gradients and running statistics of a share of a joint batch are those of the joint batch."""
    norm = norm.double()
    for p in norm.parameters():
        nn.init.normal_(p, 1.0, 0.3, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(copy.deepcopy(norm))
    join_norms(model, cuda=False)
    assert isinstance(model[0], JointBatchNorm)
    assert [f"0.{name}" for name in norm.state_dict()] == list(model.state_dict())
    share = slice(process * ROWS // WORLD, (process + 1) * ROWS // WORLD)
    for seed in range(2):
        # A process's rows have a mean and a size of their own.
        offset = torch.arange(ROWS, dtype=torch.float64).view(-1, 1, *[1] * len(shape))
        x = gaussian(ROWS, CHANNELS, *shape, seed=seed) * (1 + offset) + 10 * offset
        upstream = gaussian(ROWS, CHANNELS, *shape, seed=9)
        joint, mine = x.clone().requires_grad_(), x[share].clone().requires_grad_()
        wanted, found = norm(joint), model(mine)
        assert_close(found, wanted[share], rtol=1e-9, atol=1e-9)
        (wanted * upstream).sum().backward()
        (found * upstream[share]).sum().backward()
        assert joint.grad is not None
        assert_close(mine.grad, joint.grad[share], rtol=1e-7, atol=1e-9)
        for ours, theirs in zip(model.parameters(), norm.parameters(), strict=True):
            assert ours.grad is not None
            dist.all_reduce(ours.grad)
            assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
            ours.grad = theirs.grad = None
        assert_close(list(model.buffers()), list(norm.buffers()), rtol=1e-9, atol=1e-9)
    assert_close(model.eval()(x), norm.eval()(x))


def compare_precision(process: int) -> None:
    """In half precision statistics are float32's, and the memory format stays."""
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS))
    wanted = copy.deepcopy(model)
    join_norms(model, cuda=False)
    x = gaussian(ROWS, CHANNELS, 4, 4, dtype=torch.float32).bfloat16().to(memory_format=torch.channels_last)
    found = model(x.chunk(WORLD)[process])
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, wanted(x).chunk(WORLD)[process])


class SoloLearn:
    """SwAV's codes as solo-learn has them on several processes, written anew for one view.

    Each process keeps `queue // world` embeddings; all sums go over processes; exp(scores / eps) is not shifted.
    """

    def __init__(self, prototypes: Prototypes, queue: int, eps: float) -> None:
        self.prototypes, self.eps = prototypes, eps
        self.queue = torch.zeros(queue // WORLD, prototypes.weight.shape[1])

    def __call__(self, z: Tensor, *, queue: bool) -> Tensor:
        rows = torch.cat([z, self.queue]) if queue else z
        q = (self.prototypes(rows).detach().double() / self.eps).exp().T  # (K, N)
        total = q.sum()
        dist.all_reduce(total)
        q = q / total
        k, n = q.shape[0], q.shape[1] * WORLD
        for _ in range(3):
            of_prototype = q.sum(1, keepdim=True)
            dist.all_reduce(of_prototype)
            q = q / of_prototype / k
            q = q / q.sum(0, keepdim=True) / n
        self.queue = torch.cat([z, self.queue])[: len(self.queue)]
        codes: Tensor = (q * n).T[: len(z)].float()
        return codes


def compare_swav(process: int) -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(4, PrototypeOptions(count=6))
    place = Place(side="target", dim=4, views=1, prototypes=prototypes)
    ours, theirs = SinkhornCodes(place, SinkhornOptions(queue=16)), SoloLearn(prototypes, 16, 0.05)
    for step in range(5):
        z = torch.nn.functional.normalize(gaussian(8, 4, seed=step, dtype=torch.float32), dim=-1)
        mine = z.chunk(WORLD)[process]
        ours.prepare(Clock(step=step, steps=5, steps_per_epoch=5))
        found, wanted = ours(mine[None])[0].detach(), theirs(mine, queue=step >= 2)  # then it is full
        assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert ours.queue.shape == (1, 16, 4)
        same = gather_rows(ours.queue)
        assert torch.equal(same, ours.queue.repeat(1, WORLD, 1))


def compare_centred(process: int) -> None:
    online, target = (gaussian(2, 8, 5, seed=seed, dtype=torch.float32) + 3 for seed in (0, 1))
    online[:, :4] += 2  # the halves have means of their own
    p = online.clone().requires_grad_()
    centred = [z - z.mean(1, keepdim=True) for z in (p, target)]
    wanted = -sum(torch.cosine_similarity(centred[0][i], centred[1][1 - i]).mean() for i in (0, 1)) / 2
    mine = online.chunk(WORLD, 1)[process].clone().requires_grad_()
    found = centred_cosine(mine, target.chunk(WORLD, 1)[process])
    assert_close(joint_mean(found.detach()), torch.as_tensor(wanted).detach(), rtol=1e-6, atol=1e-6)
    (joint,) = torch.autograd.grad(wanted, p)  # type: ignore[arg-type]
    (local,) = torch.autograd.grad(found, mine)
    assert_close(local / WORLD, joint.chunk(WORLD, 1)[process], rtol=1e-5, atol=1e-7)


def on_process(process: int) -> None:
    for norm, shape in norms():
        compare_norm(process, norm, shape)
    compare_precision(process)
    compare_swav(process)
    compare_centred(process)
    assert world_max(torch.tensor([1.0, -1.0]) * (process - 0.5)).tolist() == [0.5, 0.5]
    assert own_share(torch.arange(5.0)[:, None]).flatten().tolist() == [[0, 2, 4], [1, 3]][process]
    assert math.isnan(joint_mean(torch.tensor([1.0, math.nan][process])))


@needs_distributed
def test_what_is_taken_from_a_batch_is_taken_from_that_of_all_processes(tmp_path: Path) -> None:
    run_on_processes(on_process, tmp_path)


@pytest.mark.parametrize("cuda", [True, False])
def test_norms_are_replaced_once_and_timm_s_keep_their_activation(cuda: bool) -> None:
    model = nn.ModuleDict({"plain": nn.Sequential(nn.BatchNorm1d(3)), "act": BatchNormAct2d(3)})
    join_norms(model, cuda=cuda)
    first = dict(model.named_modules())
    assert isinstance(first["plain.0"], nn.SyncBatchNorm if cuda else JointBatchNorm)
    assert isinstance(first["act"], JointBatchNorm)
    assert isinstance(first["act"].act, nn.ReLU)
    join_norms(model, cuda=cuda)
    assert dict(model.named_modules()) == first


def test_one_process_needs_no_sums() -> None:
    x = gaussian(ROWS, CHANNELS, 4, 4, dtype=torch.float32)
    norm = nn.BatchNorm2d(CHANNELS)
    joint = JointBatchNorm(copy.deepcopy(norm))
    assert torch.equal(joint(x), norm(x))
    assert_close(joint.state_dict(), norm.state_dict(), rtol=0, atol=0)
    x = gaussian(2, 8, 5, dtype=torch.float32)
    assert joint_mean(x) is world_max(x) is own_share(x) is x
