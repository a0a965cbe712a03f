"""Rows and sums over the processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(z: Tensor) -> Tensor:
    """The rows of all ranks, without gradient: (..., N, D) -> (..., world x N, D), in the order of ranks.

    Every rank calls it, with the same shape. Without `torch.distributed`, or in a world of one, it is `z` itself
    (detached).
    """
    z = z.detach()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return z
    parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.contiguous())
    return torch.cat(parts, dim=-2)


def world_sum(x: Tensor) -> Tensor:
    """`x` summed over the ranks of a distributed run (in place); `x` itself in a run of one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x
