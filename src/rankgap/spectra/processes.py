"""Rows and sums over the processes of a distributed run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether `torch.distributed` has been set up in this process."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes of a distributed run; 1 without `torch.distributed`."""
    return dist.get_world_size() if is_distributed() else 1


def gather_rows(z: Tensor) -> Tensor:
    """The rows of all processes, without gradient: (..., N, D) -> (..., world x N, D), in the processes' order.

    Every process must call it with the same shape. Without `torch.distributed`, or with one process, the result is
    `z` itself (detached).
    """
    z = z.detach()
    if world_size() == 1:
        return z
    parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, z.contiguous())
    return torch.cat(parts, dim=-2)


def world_values(x: Any) -> list[Any]:
    """A small value that can be pickled, from every process, in their order; all must call this."""
    if not is_distributed():
        return [x]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, x)
    return values


def own_share(z: Tensor) -> Tensor:
    """This process's share of rows that all processes have: (..., N, D) -> (..., about N / world, D)."""
    return z[..., dist.get_rank() :: world_size(), :] if is_distributed() else z


def world_device() -> torch.device:
    """The device on which processes exchange tensors: this one's GPU if they talk by NCCL."""
    by_gpu = is_distributed() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if by_gpu else torch.device("cpu")


def world_sum(x: Tensor) -> Tensor:
    """Sum `x` over the processes of a distributed run, in place; a single process gets `x` back unchanged."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def world_max(x: Tensor) -> Tensor:
    """The elementwise maximum of `x` over the processes, in place; a single process gets `x` back unchanged."""
    if is_distributed():
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


class _JointSum(torch.autograd.Function):
    """The sum over processes. So is its gradient: every process's loss depends on every summand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return world_sum(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return world_sum(gradients[0].clone(memory_format=torch.contiguous_format))


def joint_sum(x: Tensor) -> Tensor:
    """Sum `x` over the processes, with gradient; a single process gets `x` back unchanged.

    Where processes average their gradients, as DDP does, the result is the gradient of the mean of their losses.
    """
    if world_size() == 1:
        return x
    total: Tensor = _JointSum.apply(x)
    return total


def joint_mean(x: Tensor) -> Tensor:
    """The mean of `x` over the processes, with gradient, see `joint_sum`."""
    return x if world_size() == 1 else joint_sum(x) / world_size()
