"""The two branches that are watched: from what their modules give to the views of a step.

Shapes: V views, each (N, D), or (B, T, D) if images have tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.spectra.pair import SIDES
from rankgap.watch.hooks import BranchHooks, Call
from rankgap.watch.modules import branch_modules, is_ours
from rankgap.watch.outputs import OutputReader, all_tensors, for_side
from rankgap.watch.pairing import Views
from rankgap.watch.safety import Safety


class Branches:
    """Hooks the modules of both branches, if there are any, and reads the views in their outputs.

    Args:
        model: the model; None if both modules are given, or if outputs come by hand.
        given: each side's module, or its name.
        options: options of `OutputReader`, each one value for both sides or a pair (online, target).
        calls: filled with the calls of each side in the current step.
        safety: answers for what goes wrong.
        wanted: returns whether the current step is read.
        end_step: called at the end of each step: with the views of both sides, or None if it was not wanted;
            whether both branches gave their views in a known order; and the seconds spent on collecting them.

    Raises:
        UserError: the model has no such module, or an option has a wrong value.
    """

    def __init__(
        self,
        model: nn.Module | None,
        given: Mapping[Side, str | nn.Module],
        options: Mapping[str, Any],
        calls: Mapping[Side, deque[Call]],
        *,
        safety: Safety,
        wanted: Callable[[], bool],
        end_step: Callable[[Views | None, bool, float], object],
    ) -> None:
        self.safety, self.end_step = safety, end_step
        modules = branch_modules(model, given)
        self.readers = {
            side: OutputReader(
                name=module if isinstance(module, str) else side,
                # A centre changes within the step, so targets are taken at once. The online outputs are many, and
                # can wait for the memory that the backward pass frees.
                late=side == "online",
                three=None if modules is None else "v n d" if is_ours(model, modules[side]) else "b t d",
                say=partial(safety.tell, "tokens"),
                **{name: for_side(value, side) for name, value in options.items()},
            )
            for side, module in given.items()
        }
        self._hooks: BranchHooks | None = None
        self._depth = 0  # of `with` blocks
        self._collecting = 0.0  # seconds in this step
        if modules is not None:
            self._hooks = BranchHooks(
                modules,
                calls,
                held=self._held,
                tensors=self._collect,
                wanted=wanted,
                end_step=self._end,
                guard=self.guard,
                say=partial(safety.tell, "compiled"),
            )
            options_agree = len({(reader.select, reader.then) for reader in self.readers.values()}) == 1
            if modules["online"] is modules["target"] and options_agree:
                safety.tell("same", "online and target are the same module, so the rank difference is 0")

    def enter(self) -> None:
        """Hook the modules."""
        self._depth += 1
        if self._hooks is not None and self._depth == 1:
            self.safety.disabled = ""
            self._hooks.attach()
        elif self._hooks is not None:
            self.safety.tell("twice", "the monitor is watching already: entering it again changes nothing")

    def leave(self, *, nothing: bool) -> None:
        """Remove the hooks; warn if nothing was read."""
        left, self._depth = self._depth, max(self._depth - 1, 0)
        if self._hooks is not None and left == 1:
            if nothing and not self.safety.disabled:
                self.safety.tell("nothing", f"no step has been read: {self.why_nothing()}")
            self._hooks.remove()

    def guard(self, work: Callable[[], object]) -> None:
        """Run what may fail, outside torch.func's transforms; a failure removes the hooks."""
        with temporarily_clear_interpreter_stack():
            self.safety.guard(work, self._hooks.remove if self._hooks is not None else lambda: None)

    def end_by_hand(self) -> None:
        """End a step of a loop without a backward pass.

        Raises:
            UserError: nothing is hooked.
        """
        if self._hooks is None:
            raise UserError("step() ends a step of hooked modules: without a model, call update")
        self.guard(self._hooks.end)

    def views_of(self, outputs: Mapping[Side, Any]) -> Views:
        """The views in outputs that are given by hand; a list or tuple holds one output for each call.

        Raises:
            UserError: an output cannot be read.
        """
        views: Views = {}
        for side, output in outputs.items():
            reader = self.readers[side]
            calls = output if isinstance(output, list) or type(output) is tuple else [output]
            views[side] = [view for call in calls for view in reader.views(reader.tensors(call))]
        return views

    def why_nothing(self) -> str:
        """The most likely reason why no step has been read."""
        if why := self.safety.disabled or self.safety.skipped.get("readings"):
            return why
        if self._hooks is None:
            return "with a model, train inside the with block; without one, call update"
        return self._hooks.why_nothing()

    def _held(self, side: Side, output: Any) -> list[Tensor]:
        if found := list(all_tensors(output)):
            return found
        selected = self.safety.or_skip(lambda: self.readers[side].selected(output))  # of an object of any class
        return list(all_tensors(selected))

    def _collect(self, side: Side, output: Any) -> Sequence[Tensor]:
        began = time.perf_counter()
        found = self.safety.or_skip(lambda: self.readers[side].tensors(output))
        self._collecting += time.perf_counter() - began
        return found or ()

    def _end(self, calls: dict[Side, list[Call]]) -> None:
        parts = {side: [call.parts for call in calls[side] if call.parts] for side in SIDES}
        views = self.safety.or_skip(lambda: self._views(parts)) if any(parts.values()) else None
        seconds, self._collecting = self._collecting, 0.0
        self.end_step(views, min(map(len, parts.values())) == 1, seconds)

    def _views(self, parts: Mapping[Side, list[Sequence[Tensor]]]) -> Views:
        if silent := [self.readers[side].name for side in SIDES if not parts[side]]:
            raise UserError(
                f"{silent[0]} gave nothing to read in a step in which the other module did: name two modules that "
                "both run in every step"
            )
        device = parts["online"][0][0].device  # a teacher may have its own
        return {
            side: [view.to(device) for call in parts[side] for view in self.readers[side].views(call)]
            for side in SIDES
        }
