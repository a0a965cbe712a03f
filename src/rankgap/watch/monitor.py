"""RankMonitor: watch any two-branch model, in any loop.

    with RankMonitor(model, online="predictor", target="projector") as monitor:
        for images in loader:
            ...                      # forward, backward, step, as ever
            if monitor.diagnosis:
                print(monitor.diagnosis)
    monitor.compute().rank_difference

Shapes: V views, N rows, D columns.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.streaming import PairSpectra
from rankgap.watch.doctor import Diagnosis, Doctor
from rankgap.watch.reading import Reading, read


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What a monitor knows of a model, over all rows it sampled; tensors are float64.

    Args:
        erank_online: effective rank of the uncentred correlation of P, 0-d.
        erank_target: likewise of T.
        spectrum_online: singular values (R,), descending.
        spectrum_target: likewise.
        alignment: of the eigenspaces (R',), see `pairs.eigenspace_alignment`.
        measured_filter: gains (R',) beside the first R' of `spectrum_target`, see `pairs.measured_filter`.
        low_pass_score: in [-1, 1], see `pairs.low_pass_score`; 0-d.
        transfer: what passes along each direction (R',), without what leaks in from others; see `pairs.transfer`.
        transfer_score: the low-pass score of that; 0-d.
        rows: how many rows that was, over all processes.
        diagnosis: of the newest readings.
    """

    erank_online: Tensor
    erank_target: Tensor
    spectrum_online: Tensor
    spectrum_target: Tensor
    alignment: Tensor
    measured_filter: Tensor
    low_pass_score: Tensor
    transfer: Tensor
    transfer_score: Tensor
    rows: int
    diagnosis: Diagnosis

    @property
    def rank_difference(self) -> Tensor:
        """erank_target - erank_online: above 0 dimensions grow, at or below 0 they collapse (RDM)."""
        return self.erank_target - self.erank_online


class RankMonitor:
    """Reads the ranks of two branches every few steps, and says whether they collapse.

    With a model, forward hooks on two of its modules collect their outputs; a step ends where gradients first
    reach an online output, so that a module may run once a view or once for all. Online view 1 is then paired
    with target view 2 (the only target view where there is one). Passes in evaluation mode or without gradient are
    not looked at. Nothing is copied; leaving the `with` block removes the hooks. Without a model, call `update`.

    Rows add up in float64 (`streaming.PairSpectra`) until `reset`; under `torch.distributed` every rank calls
    `compute`, which sums over ranks. Readings and diagnosis are of this rank's own batches.

    Args:
        model: the model, wrapped by DDP or not; None to call `update` by hand.
        online: dotted name of the module whose output is P.
        target: dotted name of the module whose output is T.
        every: steps from one reading to the next. A reading costs two D x D x N products and two decompositions of
            the smaller Gram matrix, in float64.
        stacked: views that one output holds, one after the other, where a model runs all views as one batch.
        doctor: thresholds of the diagnosis.

    Raises:
        UserError: the model has no such module (the nearest names are listed).

    Example:
        >>> net = nn.ModuleDict({"projector": nn.Linear(8, 4), "predictor": nn.Linear(4, 4)})
        >>> with RankMonitor(net, online="predictor", target="projector", every=1) as monitor:
        ...     for _ in range(3):
        ...         z = [net["projector"](torch.randn(16, 8)) for _ in range(2)]
        ...         p = [net["predictor"](view) for view in z]
        ...         (p[0] * z[1].detach()).mean().backward()
        >>> monitor.compute().rows, len(monitor.history), bool(monitor.diagnosis)
        (48, 3, False)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        online: str = "predictor",
        target: str = "projector",
        *,
        every: int = 10,
        stacked: int = 1,
        doctor: Doctor | None = None,
    ) -> None:
        if every < 1 or stacked < 1:
            raise UserError(f"every and stacked are 1 or more, got {every} and {stacked}")
        self.every, self.stacked = every, stacked
        self.doctor = doctor or Doctor()
        self.step = 0
        self.history: list[Reading] = []
        self.diagnosis = Diagnosis("healthy", 0)
        self._names = {"online": online, "target": target}
        self._modules = {} if model is None else {side: _find(model, name) for side, name in self._names.items()}
        self._handles: list[RemovableHandle] = []
        self._outputs: dict[str, list[Tensor]] = {"online": [], "target": []}
        self._spectra: PairSpectra | None = None
        self._waiting = False
        self._told, self._known = 0, self.diagnosis.kind

    # Hooks

    def __enter__(self) -> Self:
        """Hook the modules."""
        for side, module in self._modules.items():
            self._handles.append(module.register_forward_hook(partial(self._collect, side)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()
        self._forget()

    def _collect(self, side: str, module: nn.Module, inputs: Any, output: Any) -> None:
        # Within a backward pass only checkpointed layers run, once more.
        if not self._modules["online"].training or torch._C._current_graph_task_id() != -1:
            return
        output = _tensor(output, self._names[side])
        if side == "online" and not output.requires_grad:
            return
        if self.step % self.every == 0:
            views = output.detach() if output.ndim == 3 else output.detach()[None]
            self._outputs[side] += [part for view in views for part in view.chunk(self.stacked)]
        if side == "online" and not self._waiting:
            self._waiting = True
            output.register_hook(self._on_backward)

    def _on_backward(self, gradient: Tensor) -> None:
        if self._waiting:
            self._waiting = False
            self._end_step()

    def _end_step(self) -> None:
        online, target = self._outputs["online"], self._outputs["target"]
        if online and target:
            self.update(online[0], target[1 if len(target) > 1 else 0])
        else:
            if online:
                gave, none = self._names["online"], self._names["target"]
                raise UserError(f"in step {self.step} {gave} gave an output and {none} none")
            self.step += 1
        self._forget()

    def _forget(self) -> None:
        self._outputs = {"online": [], "target": []}
        self._waiting = False

    # Readings

    def update(self, online: Tensor, target: Tensor) -> Diagnosis:
        """Read a pair of outputs, and count a step.

        Args:
            online: P (N, D), of view 1.
            target: T (N, D), of view 2 of the same images.

        Returns:
            The diagnosis; it is kept as `diagnosis` too.

        Raises:
            UserError: the two differ in shape.
        """
        if online.shape != target.shape or online.ndim != 2:
            raise UserError(
                f"the branches are compared row by row and column by column, (N, D) with (N, D): online is "
                f"{tuple(online.shape)}, target {tuple(target.shape)}"
            )
        reading = read(online, target, self.step)
        self.step += 1
        self.history.append(reading)
        self.diagnosis = self.doctor(reading)
        if reading.finite:
            if self._spectra is None or self._spectra.width != online.shape[1]:
                self._spectra = PairSpectra(online.shape[1]).to(online.device)
            self._spectra.update(online, target)
        return self.diagnosis

    def news(self) -> tuple[Reading | None, Diagnosis | None]:
        """What is new since the last call, for callbacks: the newest reading, and a diagnosis of another kind.

        Returns:
            The reading, or None where there was none since; the diagnosis where something else is wrong than at
            the last call, else None.
        """
        if len(self.history) == self._told:
            return None, None
        self._told = len(self.history)
        known, self._known = self._known, self.diagnosis.kind
        return self.history[-1], self.diagnosis if self.diagnosis and self._known != known else None

    def compute(self) -> Watched:
        """Spectra, ranks, alignment and measured filter of all rows sampled since the last `reset`.

        Raises:
            UserError: nothing was sampled yet, or a branch is all zero.
        """
        if self._spectra is None:
            raise UserError("no step was sampled yet: train inside the with block, or call update")
        pair = self._spectra.compute()
        for side, s in (("online", pair.spectrum_online), ("target", pair.spectrum_target)):
            if not s[0] > 0:
                raise UserError(f"the {side} outputs are all zero, so no rank is defined")
        return Watched(
            erank_online=effective_rank_of(pair.spectrum_online),
            erank_target=effective_rank_of(pair.spectrum_target),
            spectrum_online=pair.spectrum_online,
            spectrum_target=pair.spectrum_target,
            alignment=pair.alignment,
            measured_filter=pair.measured_filter,
            low_pass_score=pair.low_pass_score,
            transfer=pair.transfer,
            transfer_score=pair.transfer_score,
            rows=pair.rows,
            diagnosis=self.diagnosis,
        )

    def reset(self) -> None:
        """Begin a new window of rows; readings and diagnosis go on."""
        if self._spectra is not None:
            self._spectra.reset()


def _find(model: nn.Module, name: str) -> nn.Module:
    """A module by dotted name, looked for below a DDP wrapper too."""
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
        raise UserError(f"{name} gives {what}, where a batch (N, D) or views (V, N, D) are watched")
    return output
