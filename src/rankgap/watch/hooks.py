"""Forward hooks that collect the outputs of two modules, step by step."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankgap.choices import Side
from rankgap.watch.outputs import all_tensors

MOST_CALLS = 32  # of a module that are kept until a step ends


class Call(NamedTuple):
    """One call of a branch's module.

    Attributes:
        number: counts the calls of both modules.
        parts: the tensors of its output that are read; none in a step that is not read.
        trained: whether a gradient can flow into the output.
        training: whether the online module was in training mode.
    """

    number: int
    parts: Sequence[Tensor]
    trained: bool
    training: bool


class BranchHooks:
    """Collects the outputs of both branches' modules, and notices where a step ends.

    A step ends with the backward pass that reaches an online output. Its outputs are those of the calls that this
    pass reaches; earlier calls belong to a step that was skipped. Target outputs that come while the online module
    is in evaluation mode belong to an evaluation, unless there are no others. Nothing is copied.

    Args:
        modules: each side's module.
        calls: filled with the calls of each side since the last step's end.
        held: gives every tensor that an output holds.
        tensors: gives the tensors of an output that are read.
        wanted: called at each output; returns whether this step is read.
        end_step: called at the end of each step with the calls of both sides, without their parts if they were
            not wanted.
        guard: runs what a hook does, and answers for its errors.
        say: called with a remark on the modules.
    """

    def __init__(
        self,
        modules: Mapping[Side, nn.Module],
        calls: Mapping[Side, deque[Call]],
        *,
        held: Callable[[Side, Any], list[Tensor]],
        tensors: Callable[[Side, Any], Sequence[Tensor]],
        wanted: Callable[[], bool],
        end_step: Callable[[dict[Side, list[Call]]], object],
        guard: Callable[[Callable[[], None]], None],
        say: Callable[[str], None],
    ) -> None:
        self.modules = {side: _Watched(module) for side, module in modules.items()}
        self.calls, self.say = calls, say
        self.held, self.tensors, self.wanted, self.end_step, self.guard = held, tensors, wanted, end_step, guard
        self._counted = False  # whether a backward pass has ended a step
        self._training = False  # whether the online module was in training mode in the newest of these
        self._number = self._ended = 0  # of the newest call, and of the newest one that belongs to an ended step
        self._reached: set[int] = set()  # the numbers of the online calls that the backward pass has reached
        self._pass = -1
        self._handles: list[RemovableHandle] = []

    @property
    def attached(self) -> bool:
        """Whether the modules are hooked."""
        return bool(self._handles)

    def attach(self) -> None:
        """Hook the modules."""
        for side, watched in self.modules.items():
            if (module := watched.module) is not None:
                hook = _Hook(partial(self._on_forward, side), self.say)
                self._handles.append(module.register_forward_hook(hook))

    def remove(self) -> None:
        """Remove the hooks, and forget a step that has not ended."""
        while self._handles:
            self._handles.pop().remove()
        self._forget()

    def why_nothing(self) -> str:
        """The most likely reason why no step has ended."""
        if not self._number:
            return (
                "neither module has run inside the with block. A hook sees calls of a module, not of its methods; "
                "and it must be there before torch.compile's first call of the model (or call "
                "torch.compiler.reset())"
            )
        return (
            "no backward pass has reached an online output inside the with block. Call monitor.step() at the end "
            "of each step if there is none; name another module if this one runs in a reentrant checkpoint"
        )

    def end(self) -> None:
        """End a step by hand: every call since the last step's end belongs to it.

        Without any, a backward pass has ended the step already.
        """
        calls = {side: list(calls) for side, calls in self.calls.items()}
        self._forget()
        if any(calls.values()):
            self.end_step(calls)

    def _on_forward(self, side: Side, module: nn.Module, output: Any) -> None:
        # Only checkpointed layers run during a backward pass, for the second time.
        if torch._C._current_graph_task_id() == -1 and not self._is_second_replica(side, module, output):
            self.guard(lambda: self._collect(side, output))

    def _collect(self, side: Side, output: Any) -> None:
        trained = [z for z in self.held(side, output) if z.requires_grad and z.grad_fn is not None]
        online = self.modules["online"].module
        training = online is not None and online.training
        if not trained and self._counted and (side == "online" or training < self._training):
            return  # an evaluation
        self._number += 1
        parts = self.tensors(side, output) if self.wanted() else ()
        self.calls[side].append(Call(self._number, parts, bool(trained), training))
        if side == "online":
            for z in trained:  # the loss may be of any of them
                z.register_hook(partial(self._on_gradient, self._number))

    def _is_second_replica(self, side: Side, module: nn.Module, output: Any) -> bool:
        """Whether this is one of DataParallel's copies on another device, whose rows are of other images."""
        original = self.modules[side].module
        if not getattr(module, "_is_replica", False) or original is None:
            return False
        home = next((p.device for p in original.parameters()), None)
        return any(z.device != home for z in all_tensors(output))

    def _on_gradient(self, number: int, gradient: Tensor) -> None:
        if self.attached and number > self._ended:
            self.guard(lambda: self._reach(number))

    def _reach(self, number: int) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._pass:  # the end of the pass shows which calls it reached
            self._pass, self._reached = task, set()
            torch.autograd.Variable._execution_engine.queue_callback(self._on_backward_end)
        self._reached.add(number)

    def _on_backward_end(self) -> None:
        if self.attached and self._reached:
            self.guard(self._end_backward)

    def _end_backward(self) -> None:
        online = [call for call in self.calls["online"] if call.number in self._reached]
        # A loss may leave out views; those of a skipped step came before all that it reaches.
        skipped = sum(call.trained and call.number < min(self._reached) for call in self.calls["online"])
        target = [call for call in self.calls["target"] if call.training] or list(self.calls["target"])
        if skipped and online:
            target = target[-max(len(target) * len(online) // (len(online) + skipped), 1) :]
        self._counted = True
        self._training = any(call.training for call in online)
        self._forget()
        self.end_step({"online": online, "target": target})

    def _forget(self) -> None:
        for calls in self.calls.values():
            calls.clear()
        self._reached, self._pass = set(), -1
        self._ended = self._number


class _Watched:
    """A module that is watched, and not kept alive by that."""

    def __init__(self, module: nn.Module | None) -> None:
        self._module = None if module is None else weakref.ref(module)

    @property
    def module(self) -> nn.Module | None:
        """The module; None if it is gone."""
        return None if self._module is None else self._module()

    def __reduce__(self) -> tuple[type[_Watched], tuple[nn.Module | None]]:
        return _Watched, (self.module,)


class _Hook:
    """A forward hook. In a copy of the model, and in a file, it does nothing."""

    def __init__(
        self, act: Callable[[nn.Module, Any], None] | None = None, say: Callable[[str], None] = print
    ) -> None:
        # Dynamo cannot trace what a hook does. It takes a second to import, so only where it is used.
        self.act = torch.compiler.disable(act) if "torch._dynamo" in sys.modules and act is not None else act

        def hidden() -> bool:
            if whole := _traced_whole():
                say(
                    "torch.compile(fullgraph=True) hides a watched module, so it is not read: compile without "
                    "fullgraph, or give both branches' outputs to update"
                )
            elif self.act is act and act is not None:
                self.act = torch.compiler.disable(act)
            return whole

        hidden._dynamo_marked_constant = True  # type: ignore[attr-defined]
        self.hidden = hidden  # called by Dynamo while it traces

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() and self.hidden():
            return
        if self.act is not None:
            self.act(module, output)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _traced_whole() -> bool:
    """Whether what Dynamo traces must be one graph, which a hook would break."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    tracer = InstructionTranslator.current_tx()
    return any(getattr(tracer, name, False) for name in ("one_graph", "error_on_graph_break"))
