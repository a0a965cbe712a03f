from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from rankgap.choices import Side
from rankgap.filters.learned import LearnedFilter, MonotoneGain
from rankgap.filters.spectral import SpectralFilter, spectral_filter
from rankgap.model.closed_forms import ClosedForm, ClosedFormPredictor
from rankgap.model.maps import Place
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.processes import gather_rows
from tests.processes import WORLD, needs_distributed, run_on_processes

# More rows than columns in all, but not in one process; fewer; more in both; two views.
SHAPES = [(16, 12), (8, 30), (40, 6), (2, 8, 30)]


def batch(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(p: Tensor, partner: Tensor) -> Tensor:
    return (torch.nn.functional.normalize(p, dim=-1) * partner).sum(-1).mean()


def compare(process: int, shape: tuple[int, ...], branch: Side) -> None:
    """A process's part of a joint batch, filtered with the others, is that part of the filtered joint batch."""
    z, partner, weight = batch(shape, 0), batch(shape, 1), batch((shape[-1], shape[-1]), 2)
    rows = shape[-2] // WORLD
    mine = slice(process * rows, (process + 1) * rows)
    assert_close(gather_rows(z[..., mine, :]), z)
    assert_close(effective_rank(gather_rows(z[..., mine, :])), effective_rank(z))

    joint_weight, local_weight = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    with_joint = reference(z @ joint_weight, branch)
    with_local = spectral_filter(z[..., mine, :] @ local_weight, "log1p", branch=branch)
    assert_close(with_local, with_joint[..., mine, :], rtol=1e-9, atol=1e-9)
    if branch == "target":
        assert not with_local.requires_grad
        return
    (joint,) = torch.autograd.grad(loss_of(with_joint, partner), joint_weight)
    (local,) = torch.autograd.grad(loss_of(with_local, partner[..., mine, :]), local_weight)
    dist.all_reduce(local)
    assert_close(local / WORLD, joint, rtol=1e-9, atol=1e-9)


def compare_running(process: int) -> None:
    """A running filter that sees a part of each batch in each process equals one that sees the whole batch."""
    ours = SpectralFilter("power:-0.5", "target", estimator="ema", dim=12, momentum=0.7, every=1)
    predictor = ClosedFormPredictor(Place(dim=12), ClosedForm(alpha=0.5, eps=0.1, momentum=0.7))
    expected = torch.zeros(12, 12, dtype=torch.float64)
    for seed in range(3):
        z = batch((2, 16, 12), seed)
        mine = slice(process * 8, (process + 1) * 8)
        found, predicted = ours(z[:, mine]), predictor(z[:, mine])
        expected = 0.7 * expected + 0.3 * z.flatten(0, 1).T @ z.flatten(0, 1) / 32
    expected = expected / (1 - 0.7**3)
    assert ours.running is not None
    assert_close(ours.running.correlation, expected)
    values, vectors = torch.linalg.eigh(expected)
    assert_close(found, z[:, mine] @ (vectors * values**-0.25 @ vectors.T), rtol=1e-5, atol=1e-5)
    w = vectors * ((values / values.max()).sqrt() + 0.1) @ vectors.T
    assert_close(predicted, z[:, mine] @ w, rtol=1e-5, atol=1e-5)


def compare_learned(process: int, shape: tuple[int, ...]) -> None:
    """The mean over processes of a learned gain's gradients is the joint batch's; so is the encoder's."""
    z, partner, weight = batch(shape, 0), batch(shape, 1), batch((shape[-1], shape[-1]), 2)
    rows = shape[-2] // WORLD
    mine = slice(process * rows, (process + 1) * rows)
    ours = LearnedFilter().double()
    joint_weight, local_weight = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    joint_p = joint_learned(z @ joint_weight, ours.gain)
    local_p = ours(z[..., mine, :] @ local_weight)
    assert_close(local_p, joint_p[..., mine, :], rtol=1e-9, atol=1e-9)
    joint = torch.autograd.grad(loss_of(joint_p, partner), (joint_weight, ours.gain.raw))
    local = torch.autograd.grad(loss_of(local_p, partner[..., mine, :]), (local_weight, ours.gain.raw))
    for found, wanted in zip(local, joint, strict=True):
        dist.all_reduce(found)
        assert_close(found / WORLD, wanted, rtol=1e-9, atol=1e-9)


def joint_learned(z: Tensor, gain: MonotoneGain) -> Tensor:
    """The definition, by SVD, in one process: W is held constant, and its gain is trained."""
    _, s, vt = torch.linalg.svd(z.detach(), full_matrices=False)
    p: Tensor = z @ (vt.mT * gain(s / z.shape[-2] ** 0.5).unsqueeze(-2) @ vt)
    return p


def reference(z: Tensor, branch: Side) -> Tensor:
    """The definition, by SVD, in one process."""
    u, s, vt = torch.linalg.svd(z.detach(), full_matrices=False)
    g = torch.log1p(s / z.shape[-2] ** 0.5).unsqueeze(-2)
    p: Tensor = u * (s.unsqueeze(-2) * g) @ vt if branch == "target" else z @ (vt.mT * g @ vt)
    return p


def in_process(process: int) -> None:
    branches: tuple[Side, ...] = ("online", "target")
    for shape in SHAPES:
        for branch in branches:
            compare(process, shape, branch)
    compare_running(process)
    for shape in SHAPES:
        compare_learned(process, shape)


@needs_distributed
def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path) -> None:
    run_on_processes(in_process, tmp_path)
