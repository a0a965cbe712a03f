"""A checkpoint: the state of a run after a step, written to a file and read back strictly.

The file is a torch file, a zip archive. It is untrusted input: a copy may be incomplete, and someone else's file
may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rankgap.errors import UserError, check_within
from rankgap.run.optimizer import state_names
from rankgap.run.torch_file import is_plain, read_torch_file


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """The state of a run after a step.

    Args:
        rankgap: the version that wrote it.
        step: optimiser steps done.
        seconds: seconds of training until then.
        best: the best epoch's RankMe until then; 0 if none was rated.
        model: the model's state by name: tensors, and counts of steps.
        optimizer: the optimiser's `state_dict`; only the tensors of each parameter are read back.
        random: the states of the random generators of the CPU and of each GPU.
        path: the file that it was read from.
    """

    rankgap: str
    step: int
    seconds: float
    best: float
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    random: Mapping[str, Any]
    path: Path = Path("last.ckpt")

    def plain(self) -> dict[str, Any]:
        """The contents of the file, by name."""
        return {name: getattr(self, name) for name in _KINDS}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file on the CPU. No code in it is run, and it takes no more memory than its size.

        Raises:
            UserError: the file cannot be read, or is not a rankgap checkpoint; the message names what is wrong.
        """
        values = read_torch_file(path, "a rankgap checkpoint")
        if not isinstance(values, dict) or values.keys() != _KINDS.keys():
            raise UserError(f"{path} is not a rankgap checkpoint: it should hold {', '.join(_KINDS)}")
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise UserError(f"{path}: its {name} should be of type {kind.__name__}, got {values[name]!r:.80}")
        found = cls(**values, path=path)
        try:
            check_within(found, step=(0, 2**53), seconds=(1e-9, 1e12), best=(0, 1e12))
        except UserError as error:
            raise UserError(f"{path}: its {error}") from None
        found._check_random()
        return found

    def _check_random(self) -> None:
        cpu, cuda = (self.random.get(name) for name in ("cpu", "cuda"))
        whole = isinstance(cuda, list) and all(is_plain(s) and s.dtype == torch.uint8 for s in [cpu, *cuda])
        try:
            torch.Generator().set_state(cpu if whole and cpu is not None else torch.empty(0))
        except (RuntimeError, TypeError):
            raise UserError(f"{self.path}: its random does not hold the states of random generators") from None

    def load_model(self, model: nn.Module) -> None:
        """Load a model's weights.

        Raises:
            UserError: the weights belong to another model, or are not finite.
        """
        expected = model.state_dict()
        for name in [*expected, *self.model]:
            reason = (
                "missing from the file"
                if name not in self.model
                else "not in the model"
                if name not in expected
                else _difference(self.model[name], expected[name])
            )
            if reason:
                raise UserError(
                    f"{self.path} holds another model, not this {type(model).__name__}: {str(name)[:80]}: {reason}"
                )
        model.load_state_dict(self.model)

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load an optimiser's state of each parameter. Its options are not loaded: they come from the recipe.

        Raises:
            UserError: the state belongs to another optimiser.
        """
        state = self.optimizer.get("state")
        if not isinstance(state, dict) or not all(isinstance(kept, dict) for kept in state.values()):
            raise UserError(f"{self.path}: its optimizer should hold a state for each parameter")
        groups, expected = optimizer.state_dict()["param_groups"], {}
        for group, of_ours in zip(groups, optimizer.param_groups, strict=True):
            names = state_names(optimizer, group)
            for index, parameter in zip(group["params"], of_ours["params"], strict=True):
                expected[index] = {name: torch.zeros(()) if name == "step" else parameter for name in names}
        for index, kept in state.items():
            if index not in expected or kept.keys() not in (set(), expected[index].keys()):
                raise UserError(f"{self.path} holds the state of a different optimizer from the recipe's")
            for name, value in kept.items():
                if reason := _difference(value, expected[index][name]):
                    raise UserError(f"{self.path}: {name} of the optimizer's parameter {index}: {reason}")
        if self.step and any(expected.values()) and not any(state.values()):
            raise UserError(f"{self.path} holds no optimizer state")
        for group in groups:  # fused SGD rejects a group in which only some parameters have a buffer
            begun = [index for index in group["params"] if state.get(index)]
            if begun and state[begun[0]].keys() == {"momentum_buffer"}:
                rest = set(group["params"]) - set(begun)
                state = state | {i: {name: torch.zeros_like(p) for name, p in expected[i].items()} for i in rest}
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_random(self) -> None:
        """Restore torch's random generators."""
        torch.set_rng_state(self.random["cpu"])
        for device, state in zip(range(torch.cuda.device_count()), self.random["cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)


_KINDS: dict[str, type] = {
    "rankgap": str,
    "step": int,
    "seconds": float,
    "best": float,
    "model": dict,
    "optimizer": dict,
    "random": dict,
}


def _difference(value: Any, expected: Any) -> str | None:
    """Why a value cannot replace another; None if it can."""
    if not isinstance(expected, Tensor):
        if not isinstance(expected, int):  # the extra state of a module of the user's own
            return None if type(value) is type(expected) else f"a {type(value).__name__}"
        same = type(value) is type(expected) and 0 <= value < 2**53
        return None if same else f"{value!r:.40}, expected a count"
    if not is_plain(value):
        return "not a plain tensor"
    if (value.shape, value.dtype) != (expected.shape, expected.dtype):
        found, wanted = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (value, expected))
        return f"{found}, expected {wanted}"
    # A mask may hold infinities where the model that was just built has them too.
    return None if (value.isfinite() | ~expected.to(value.device).isfinite()).all() else "not finite"
