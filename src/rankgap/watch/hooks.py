"""Forward hooks that collect the outputs of two modules of a model, step by step."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankgap.errors import UserError
from rankgap.spectra.pair import Side


class BranchHooks:
    """Collects the outputs of both branches' modules.

    A step ends where gradients first reach an online output, so a module may run once per view or once for all
    views. Passes in evaluation mode or without gradient are skipped. Nothing is copied.

    Args:
        model: the model, wrapped by DDP or not.
        names: the dotted name of each side's module.
        stacked: number of views in one output, one after the other.
        wanted: called at each output; returns whether to collect this step's outputs.
        end_step: called at the end of each step with the online and the target views, which are empty if they were
            not wanted.

    Raises:
        UserError: the model has no such module (the nearest names are listed).
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[Side, str],
        *,
        stacked: int,
        wanted: Callable[[], bool],
        end_step: Callable[[list[Tensor], list[Tensor]], object],
    ) -> None:
        self.names, self.stacked, self.wanted, self.end_step = names, stacked, wanted, end_step
        self.modules = {side: _find(model, name) for side, name in names.items()}
        self._handles: list[RemovableHandle] = []
        self._outputs: dict[Side, list[Tensor]] = {"online": [], "target": []}
        self._waiting = False

    def attach(self) -> None:
        """Hook the modules."""
        for side, module in self.modules.items():
            self._handles.append(module.register_forward_hook(partial(self._collect, side)))

    def remove(self) -> None:
        """Remove the hooks, and forget a step that has not ended."""
        while self._handles:
            self._handles.pop().remove()
        self._forget()

    def _collect(self, side: Side, module: nn.Module, inputs: Any, output: Any) -> None:
        # Only checkpointed layers run during a backward pass, for the second time.
        if not self.modules["online"].training or torch._C._current_graph_task_id() != -1:
            return
        parts = output if isinstance(output, tuple | list) else [output]
        output = _tensor(output, self.names[side])
        trained = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
        if side == "online" and not trained:
            return
        if self.wanted():
            views = output.detach() if output.ndim == 3 else output.detach()[None]
            self._outputs[side] += [part for view in views for part in view.chunk(self.stacked)]
        if side == "online" and not self._waiting:
            self._waiting = True
            for part in trained:  # the loss may be of any of them
                part.register_hook(self._on_backward)

    def _on_backward(self, gradient: Tensor) -> None:
        if not self._waiting:
            return
        online, target = self._outputs["online"], self._outputs["target"]
        self._forget()
        if online and not target:
            raise UserError(
                f"{self.names['online']} gave an output but {self.names['target']} did not in the same step: "
                "name two modules that both run in every step"
            )
        self.end_step(online, target)

    def _forget(self) -> None:
        self._outputs = {"online": [], "target": []}
        self._waiting = False


def _find(model: nn.Module, name: str) -> nn.Module:
    """A module by its dotted name, below a DDP wrapper if there is one."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.get_submodule("module")
    names = [n for n, _ in model.named_modules() if n]
    if name in names:
        return model.get_submodule(name)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    near += [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2] and n not in near][:5]
    hint = ", ".join(near or names[:12])
    raise UserError(f"{type(model).__name__} has no module {name!r}; {'nearest' if near else 'it has'}: {hint}")


def _tensor(output: Any, name: str) -> Tensor:
    """A module's output, or the first of several."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim not in (2, 3):
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name} returns {what}; expected a batch (N, D) or views (V, N, D)")
    return output
