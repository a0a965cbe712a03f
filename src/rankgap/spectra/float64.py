"""The precision of our arithmetic.

Spectra, filters and losses are computed in float32 or better, whatever autocast gives them. Float64 work runs on a
tensor's own device, or on the CPU if the device has no float64 (Apple's GPUs).

This module is the only place with these rules. Decompositions and float64 sums use it, and their results stay on
the device that it chooses; a filter moves its output back. On a CPU or on CUDA, nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(z: Tensor) -> Tensor:
    """Return `z` in float32, or in float64 if that is what it is in."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def float64_device(z: Tensor) -> torch.device:
    """The device on which work on `z` is done in float64."""
    try:
        return z.new_empty(0).double().device
    except TypeError:  # raised by torch for a device without float64
        return torch.device("cpu")


def with_float64(z: Tensor) -> Tensor:
    """Return `z` in its own dtype, on a device that has float64."""
    return z.to(float64_device(z))


def double(z: Tensor) -> Tensor:
    """Return `z` in float64, on a device that has it; `.to(z)` moves a result back."""
    return with_float64(z).double()


class KeepsFloat64(nn.Module):
    """A module whose float64 buffers stay on their device if it moves to one without float64."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Any:
        def moved(x: Tensor) -> Tensor:
            if x.dtype != torch.float64:
                return fn(x)
            try:
                return fn(x)
            except TypeError:
                return x

        return super()._apply(moved, *args, **options)  # type: ignore[no-untyped-call]
