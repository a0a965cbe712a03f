"""Where float64 work happens: on a tensor's own device, or on the CPU where that has no float64 (Apple's GPUs).

This is the one home of the rule. Decompositions and float64 sums go through it, and their results are then on that
device, while a filter brings its output back. Nothing changes on a CPU or on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def float64_device(z: Tensor) -> torch.device:
    """The device on which work on `z` is done in float64."""
    try:
        return z.new_empty(0).double().device
    except TypeError:  # raised by torch for a device without float64
        return torch.device("cpu")


def with_float64(z: Tensor) -> Tensor:
    """`z` in its own dtype, on a device that has float64."""
    return z.to(float64_device(z))


def double(z: Tensor) -> Tensor:
    """`z` in float64, on a device that has it; `.to(z)` of a result brings it back."""
    return with_float64(z).double()


class KeepsFloat64(nn.Module):
    """A module whose float64 buffers stay where they are if it moves to a device without float64."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Any:
        def moved(x: Tensor) -> Tensor:
            if x.dtype != torch.float64:
                return fn(x)
            try:
                return fn(x)
            except TypeError:
                return x

        return super()._apply(moved, *args, **options)  # type: ignore[no-untyped-call]
