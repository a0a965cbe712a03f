"""Rows and sums over the processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether `torch.distributed` has been set up in this process."""
    return dist.is_available() and dist.is_initialized()


def gather_rows(z: Tensor) -> Tensor:
    """The rows of all processes, without gradient: (..., N, D) -> (..., world x N, D), in the processes' order.

    Every process must call it with the same shape. Without `torch.distributed`, or with one process, the result is
    `z` itself (detached).
    """
    z = z.detach()
    if not is_distributed() or dist.get_world_size() == 1:
        return z
    parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.contiguous())
    return torch.cat(parts, dim=-2)


def world_sum(x: Tensor) -> Tensor:
    """Sum `x` over the processes of a distributed run, in place; a single process gets `x` back unchanged."""
    if is_distributed():
        dist.all_reduce(x)
    return x
