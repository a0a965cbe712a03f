"""A stand-in for an Apple GPU: a device "mps" without float64, whose tensors do not mix with the CPU's.

The tensors are in ordinary memory, so their numbers equal the CPU's exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

REFUSAL = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
_MPS, _CPU = torch.device("mps"), torch.device("cpu")
_CROSSES = {"copy_", "__getitem__", "__setitem__", "to", "__set__", "index_copy_"}  # between devices


class AppleTensor(torch.Tensor):
    """A tensor on that device."""


class AppleGPU(TorchFunctionMode):
    """Inside this context, `.to("mps")`, factories and operations on that device behave as described."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        leaves = tree_leaves((args, kwargs))
        ours = any(isinstance(x, AppleTensor) for x in leaves)
        if func == Tensor.device.__get__:
            return _MPS if ours else func(*args)
        others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, AppleTensor)]
        if ours and name not in _CROSSES and any(x.ndim for x in others):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found mps:0 and cpu")
        asked = [torch.device(x) for x in leaves if isinstance(x, torch.device) or x in _device_names(x)]
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            asked = [_MPS if isinstance(args[1], AppleTensor) else _CPU]
        if name == "cpu":
            asked = [_CPU]
        there = asked[0].type == "mps" if asked else ours
        args, kwargs = tree_map(_named_cpu, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            if not there and ours and out is args[0]:  # .cpu() and .to("cpu") leave the device
                return out.as_subclass(Tensor)
        return tree_map(_on_gpu, out) if there else out


def _device_names(x: object) -> tuple[str, ...]:
    return ("cpu", "mps") if isinstance(x, str) else ()


def _named_cpu(x: Any) -> Any:
    return _CPU if isinstance(x, torch.device | str) and str(x).partition(":")[0] == "mps" else x


def _on_gpu(x: Any) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, AppleTensor):
        return x
    if x.dtype == torch.float64:
        raise TypeError(REFUSAL)
    return x.as_subclass(AppleTensor)


def move(model: nn.Module) -> nn.Module:
    """Move a model to the device, as `model.to("mps")` does."""
    parameters = [(module, dict(module._parameters)) for module in model.modules()]
    for module, _ in parameters:
        module._parameters.clear()  # torch would keep their Python type
    model._apply(_on_gpu)
    for module, found in parameters:
        module._parameters |= {
            name: None if p is None else nn.Parameter(_on_gpu(p.detach()), requires_grad=p.requires_grad)
            for name, p in found.items()
        }
    return model
