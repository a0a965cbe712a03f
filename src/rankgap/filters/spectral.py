"""Spectral filters: a gain on a batch's singular values, on the online or on the target branch.

Z has the thin SVD U diag(s) V^T. A filter with gain g gives F_g(Z) = U diag(s g(x)) V^T (RDM: Zhuo et al. 2023),
with x = s / sqrt(N), so that a gain means the same at every batch size.

Shapes: N rows of all processes, D columns, R = min(N, D). Each of the `...` leading dimensions (views) is filtered
on its own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from rankgap.choices import Side
from rankgap.errors import UserError, unknown
from rankgap.filters.gains import AutoPower, Gain, Scale, parse_gain
from rankgap.filters.products import gain_by_products
from rankgap.filters.running import RunningMap
from rankgap.spectra.float64 import KeepsFloat64, at_least_float32
from rankgap.spectra.gram import check_batch, eigenbasis, gram_basis, rank_tolerance, svd_basis
from rankgap.spectra.processes import gather_rows

Solver = Literal["auto", "gram", "svd", "iterative"]

Estimator = Literal["batch", "ema"]


class _HeldMap(torch.autograd.Function):
    """P = Z W with W held constant, for fewer rows than columns; W (D x D) is never formed.

    With V = Y^T U / x, W = V diag(g) V^T gives dL/dZ = (dL/dP) W = ((dL/dP) Y^T) U diag(g / x^2) U^T Y. The
    forward pass computes U diag(g) U^T Z, which saves one large product over Z W in this form. The factors of U
    diag(g / x^2) U^T are kept apart: rounded to float32, their product would err by (x_1 / x_i)^2, while they err
    by x_1 / x_i.

    A gain with parameters gets its gradient through U diag(g) U^T, the only place where P depends on g.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Tensor, y: Tensor, matrix: Tensor, *between: Tensor) -> Tensor:
        """P (..., N', D) of this process's N' rows.

        Args:
            ctx: autograd's context.
            z: this process's rows (..., N', D).
            rows: the rows of all processes (..., N, D).
            y: `rows` on the gain's scale (..., N, D).
            matrix: this process's rows of U diag(g) U^T (..., N', N).
            between: the factors of U diag(g / x^2) U^T, in order.
        """
        ctx.save_for_backward(rows if ctx.needs_input_grad[3] else None, y, *between)
        return matrix @ rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradient by W."""
        rows, y, *between = ctx.saved_tensors
        with torch.autocast(y.device.type, enabled=False):  # the caller may run backward inside autocast
            gradient = grads[0] @ y.mT
            for factor in between:
                gradient = gradient @ factor
            of_matrix = None if rows is None else grads[0] @ rows.mT
            return gradient @ y, None, None, of_matrix, *(None for _ in between)


class _Solution(NamedTuple):
    """A gain in the coordinates of the smaller side of Y, whose singular values are x.

    Attributes:
        matrix: U diag(g) U^T (..., R, R).
        between: the factors of U diag(g / x^2) U^T, in order; no factors stand for the identity.
        exponent: the exponent that `auto` chose (..., 1); None for other gains.
    """

    matrix: Tensor
    between: tuple[Tensor, ...]
    exponent: Tensor | None = None


def choose_solver(solver: Solver, gain: Gain, device: torch.device) -> Solver:
    """The solver that "auto" stands for: "iterative" for the powers 1, 1/2, -1/2 and -1 on a GPU, else "gram".

    Raises:
        UserError: the solver is "iterative", but the gain is chosen from the spectrum.
    """
    if solver == "iterative" and not gain.elementwise:
        raise UserError(
            f"gain {gain.name!r} is chosen from the spectrum, which solver='iterative' never computes; "
            "use solver='gram'"
        )
    if solver != "auto":
        return solver
    by_products = device.type == "cuda" and gain.power in (-1, -0.5, 0.5, 1)
    return "iterative" if by_products else "gram"


def _solve(y: Tensor, gain: Gain, solver: Solver) -> _Solution:
    """The gain on `y` (..., N, D), float32 or float64."""
    solver = choose_solver(solver, gain, y.device)
    if gain.gram_power or solver == "iterative":
        gram = y @ y.mT if y.shape[-2] <= y.shape[-1] else y.mT @ y
        if gain.gram_power:
            factors = (gram,) * gain.gram_power
            return _Solution(functools.reduce(torch.matmul, factors), factors[1:])
        matrix, inverse = gain_by_products(gram, gain, gain.power)
        return _Solution(matrix, (inverse, matrix, inverse))  # the target branch multiplies none of these
    x, vectors, keep = (svd_basis if solver == "svd" else gram_basis)(y, "spectral_filter")
    g, exponent = _values(gain, x, keep)
    x = torch.where(keep, x, 1.0)
    x, g, u = x.unsqueeze(-2).to(y), g.unsqueeze(-2).to(y), vectors.to(y)
    return _Solution(u * g @ u.mT, (u / x, (u * (g.detach() / x)).mT), exponent)


def _values(gain: Gain, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """g(x) (..., R), 0 in the null space; and the exponent (..., 1) that `auto` chose, None for other gains."""
    if not isinstance(gain.function, AutoPower):
        return gain.on(x, keep), None
    exponent = gain.function.exponent(torch.where(keep, x, 0.0))
    return torch.where(keep, x**exponent, 0.0), exponent


def _filtered(
    z: Tensor, gain: Gain, *, branch: Side, scale: Scale, solver: Solver
) -> tuple[Tensor, Tensor | None]:
    """F_g(Z) as `spectral_filter` gives it; and the exponent (..., 1) that `auto` chose, None for other gains."""
    check_batch(z, "spectral_filter")
    if branch == "target":
        z = z.detach()
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_float32(z)
        rows = gather_rows(z)  # (..., N, D)
        n, d = rows.shape[-2:]
        y = rows / math.sqrt(n) if scale == "rms" else rows
        matrix, between, exponent = _solve(y, gain, solver)
        if d < n:
            return z @ matrix, exponent
        local = z.shape[-2]
        matrix = matrix.narrow(-2, 0 if n == local else dist.get_rank() * local, local)
        return _HeldMap.apply(z, rows, y, matrix, *between), exponent


def _check_choices(branch: Side, scale: Scale, solver: Solver, estimator: Estimator = "batch") -> None:
    choices: list[tuple[str, str, Any]] = [
        ("branch", branch, Side),
        ("scale", scale, Scale),
        ("solver", solver, Solver),
        ("estimator", estimator, Estimator),
    ]
    for kind, given, known in choices:
        if given not in get_args(known):
            raise unknown(kind, given, get_args(known))


def spectral_filter(
    z: Tensor,
    gain: str | Gain,
    *,
    branch: Side = "online",
    scale: Scale = "rms",
    solver: Solver = "auto",
) -> Tensor:
    """F_g(Z) = U diag(s g(x)) V^T: the batch with a gain on its singular values (RDM).

    Gradient. On the online branch, the filter is a linear predictor that is held constant: P = Z W with
    W = V diag(g(x)) V^T, so dL/dZ = (dL/dP) W. On the target branch there is no gradient.

    Null space. Directions with s_i <= tol s_1 get gain 0, with tol as in `spectra.rank_tolerance`. Such directions
    are the normal case, because the columns of a batch-normed batch sum to zero, and a negative power of the
    rounding left in them would drown all others.

    Solvers. "gram" builds the Gram matrix of the smaller side and decomposes it in float64. The other products run
    in float32 (float64 for a float64 input) with autocast off; allowing TF32 lowers them to three digits. "svd" is
    the definition, in float64. Where the device has no float64 (Apple's GPUs), both decompose on the CPU.
    "iterative" uses products alone (see `products`): it never waits for a GPU, resolves directions down to 1e-3
    s_1 in float32, and propagates values that are not finite. With every solver, power:2 and other even powers are
    products of the Gram matrix. "auto" is "iterative" on CUDA for power:p with p in {-1, -0.5, 0.5, 1}, and
    otherwise "gram", which is faster on a CPU at every size.

    Under `torch.distributed` the basis is that of the rows of all processes, and N counts them all; the filter is
    applied to the local rows. Every process must call it, with the same shape.

    Args:
        z: (..., N, D), any float dtype.
        gain: a `Gain`, or its name or formula, see `parse_gain`.
        branch: "online" or "target", which decides the gradient.
        scale: what the gain acts on: "rms", x = s / sqrt(N), or "raw", x = s, as the authors wrote it, which
            depends on the batch size.
        solver: "auto", "gram", "svd" or "iterative".

    Returns:
        (..., N, D); float32, because power:2 would overflow in half precision, or float64 for a float64 input.

    Raises:
        UserError: `z` is not a non-empty floating-point (..., N, D), or the gain, branch, scale or solver is
            unknown.
        NonFiniteError: `z` has a NaN or an infinity, and the solver decomposes it.
        RuntimeError: the decomposition did not converge, even with a jitter.

    Example:
        >>> spectral_filter(torch.diag(torch.tensor([4.0, 1.0])), "power:1", scale="raw")
        tensor([[16.,  0.],
                [ 0.,  1.]])
    """
    gain = parse_gain(gain) if isinstance(gain, str) else gain
    _check_choices(branch, scale, solver)
    return _filtered(z, gain, branch=branch, scale=scale, solver=solver)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterOptions:
    """The options of a `SpectralFilter` beside its gain and branch; every field is an argument of the same name.

    Args:
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: "auto", "gram", "svd" or "iterative", see `spectral_filter`.
        estimator: where the spectrum comes from: "batch", each batch on its own, or "ema", a running correlation.
        momentum: of the running correlation, in [0, 1); it looks back over some 1 / (1 - momentum) steps.
        every: training steps from one decomposition of the running correlation to the next, at least 1.
    """

    scale: Scale = "rms"
    solver: Solver = "auto"
    estimator: Estimator = "batch"
    momentum: float = 0.99
    every: int = 10


class SpectralFilter(KeepsFloat64):
    """`spectral_filter` as a map of a branch: (..., N, D) -> (..., N, D), without parameters.

    By default the spectrum is that of the batch, each leading dimension (view) on its own and without any state.
    With `estimator="ema"` it is that of a running correlation E[z z^T] (D x D) over all views and processes, which
    is decomposed every few steps. The running spectrum serves batches smaller than the rank they should show, and
    runs on many devices, because it reduces one D x D matrix where the other gathers the features. It starts with
    the first batch, changes in training mode only, and costs a decomposition of D x D each `every` steps:
    milliseconds at D = 256, seconds on a CPU at D = 2048.

    Args:
        gain: its name or formula, see `parse_gain`.
        branch: "online" (a linear predictor held constant) or "target" (no gradient).
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: "auto", "gram", "svd" or "iterative", see `spectral_filter`. With "ema", "svd" is the same as
            "gram", because there is no batch to decompose.
        estimator: "batch" or "ema".
        dim: D, for "ema".
        momentum: of the running correlation, in [0, 1); it looks back over some 1 / (1 - momentum) steps.
        every: training steps from one decomposition of the running correlation to the next.

    Attributes:
        exponent: for the gain `auto`, the exponent that the last spectrum was filtered with: that of view 2, the
            target view that is compared with online view 1, or of the only spectrum there is. 0-d, without
            gradient; NaN before the first batch. None for other gains.

    Raises:
        UserError: the gain, branch, scale, solver or estimator is unknown; or "ema" comes without `dim`, with a
            momentum outside [0, 1) or with `every` below 1.

    Example:
        >>> SpectralFilter("power:-0.5", branch="target")
        SpectralFilter(power:-0.5, branch=target, scale=rms)
    """

    exponent: Tensor | None

    def __init__(
        self,
        gain: str,
        branch: Side = "online",
        scale: Scale = "rms",
        *,
        solver: Solver = "auto",
        estimator: Estimator = "batch",
        dim: int | None = None,
        momentum: float = 0.99,
        every: int = 10,
    ) -> None:
        super().__init__()
        self.gain = parse_gain(gain)
        _check_choices(branch, scale, solver, estimator)
        self.branch, self.scale, self.solver = branch, scale, solver
        self.running: RunningMap | None = None
        if estimator == "ema":
            if dim is None:
                raise UserError("a filter with estimator='ema' keeps a D x D correlation; pass dim, the width D")
            self.running = RunningMap(self._solve_running, dim, momentum=momentum, every=every, scale=scale)
        chosen = isinstance(self.gain.function, AutoPower)
        exponent = torch.tensor(math.nan, dtype=torch.float64) if chosen else None
        # That of a running correlation is saved: a resumed run may read it before the next decomposition.
        self.register_buffer("exponent", exponent, persistent=estimator == "ema")

    def forward(self, z: Tensor) -> Tensor:
        """Filter a batch, each leading dimension (view) on its own.

        Raises:
            UserError: as `spectral_filter`; or "ema" has seen no batch in training mode yet.
        """
        if self.running is None:
            p, exponent = _filtered(z, self.gain, branch=self.branch, scale=self.scale, solver=self.solver)
            self._keep(exponent)
            return p
        check_batch(z, "SpectralFilter")
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            held: Tensor = self.running(z.detach())
            return (z.detach() if self.branch == "target" else z) @ held.to(z.dtype)

    def _solve_running(self, gram: Tensor) -> Tensor:
        """V diag(g(x)) V^T of a running correlation V diag(x^2) V^T (D, D)."""
        if self.gain.gram_power:
            power: Tensor = torch.linalg.matrix_power(gram, self.gain.gram_power)
            return power
        if choose_solver(self.solver, self.gain, gram.device) == "iterative":
            return gain_by_products(gram.float(), self.gain, self.gain.power)[0]
        x, v, keep = eigenbasis(gram, rank_tolerance(len(gram), len(gram), torch.float32), "running spectrum")
        g, exponent = _values(self.gain, x, keep)
        self._keep(exponent)
        return v * g @ v.mT

    def _keep(self, exponent: Tensor | None) -> None:
        """Remember the exponent (..., 1) of view 2, or of the only spectrum."""
        if self.exponent is not None and exponent is not None:
            each = exponent.flatten()
            self.exponent.copy_(each[min(1, len(each) - 1)])

    def extra_repr(self) -> str:
        """Gain, branch and scale, and the options that differ from their defaults."""
        parts = [self.gain.name, f"branch={self.branch}", f"scale={self.scale}"]
        if self.solver != "auto":
            parts.append(f"solver={self.solver}")
        if self.running is not None:
            parts.append(f"estimator=ema, momentum={self.running.momentum:g}, every={self.running.every}")
        return ", ".join(parts)
