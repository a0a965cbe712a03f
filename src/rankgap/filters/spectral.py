"""Spectral filters: a gain on a batch's singular values, on the online or on the target branch.

Z has the thin SVD U diag(s) V^T. A filter with gain g gives F_g(Z) = U diag(s g(x)) V^T (RDM: Zhuo et al. 2023),
with x = s / sqrt(N) so that a gain means the same at every batch size.

Shapes: N rows of all processes, D columns, R = min(N, D), `...` leading dimensions (views), each filtered alone.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankgap.errors import UserError, unknown
from rankgap.filters.gains import Gain, Scale, parse_gain
from rankgap.filters.products import gain_by_products
from rankgap.filters.running import RunningMap
from rankgap.spectra.gram import check_batch, eigenbasis, gram_basis, rank_tolerance, svd_basis
from rankgap.spectra.pair import Side
from rankgap.spectra.processes import gather_rows

Solver = Literal["auto", "gram", "svd", "iterative"]

Estimator = Literal["batch", "ema"]


class _HeldMap(torch.autograd.Function):
    """P = Z W with W held constant, for fewer rows than columns: W (D x D) is never formed.

    With V = Y^T U / x, W = V diag(g) V^T gives dL/dZ = (dL/dP) W = ((dL/dP) Y^T) U diag(g / x^2) U^T Y. Forward
    takes U diag(g) U^T Z, which is one large product less than Z W written so. The factors between stay apart:
    rounded to float32, U diag(g / x^2) U^T would err by (x_1 / x_i)^2 where they err by x_1 / x_i.

    A gain with parameters gets its gradient through U diag(g) U^T, in which alone P holds g.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Tensor, y: Tensor, matrix: Tensor, *between: Tensor) -> Tensor:
        """`z` (..., N', D): this rank's share of `rows` (..., N, D); `y`: those scaled; `matrix` (..., N', N)."""
        ctx.save_for_backward(rows if ctx.needs_input_grad[3] else None, y, *between)
        return matrix @ rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradient by W."""
        rows, y, *between = ctx.saved_tensors
        with torch.autocast(y.device.type, enabled=False):  # a caller may go backward inside autocast
            gradient = grads[0] @ y.mT
            for factor in between:
                gradient = gradient @ factor
            of_matrix = None if rows is None else grads[0] @ rows.mT
            return gradient @ y, None, None, of_matrix, *(None for _ in between)


class _Solution(NamedTuple):
    """A gain in the coordinates of the smaller side of Y, whose singular values are x.

    Args:
        matrix: U diag(g) U^T (..., R, R).
        between: factors of U diag(g / x^2) U^T, in order; the identity where there are none.
    """

    matrix: Tensor
    between: tuple[Tensor, ...]


def choose_solver(solver: Solver, gain: Gain, device: torch.device) -> Solver:
    """What `auto` stands for: products for a power of 1/2 or 1, or its inverse, on a GPU; else the Gram matrix."""
    if solver == "iterative" and not gain.elementwise:
        raise UserError(
            f"gain {gain.name!r} is chosen from the spectrum, which solver='iterative' never knows: gram"
        )
    if solver != "auto":
        return solver
    by_products = device.type == "cuda" and gain.power in (-1, -0.5, 0.5, 1)
    return "iterative" if by_products else "gram"


def _solve(y: Tensor, gain: Gain, solver: Solver) -> _Solution:
    """The gain of `y` (..., N, D), float32 or float64."""
    solver = choose_solver(solver, gain, y.device)
    if gain.gram_power or solver == "iterative":
        gram = y @ y.mT if y.shape[-2] <= y.shape[-1] else y.mT @ y
        if gain.gram_power:
            factors = (gram,) * gain.gram_power
            return _Solution(functools.reduce(torch.matmul, factors), factors[1:])
        matrix, inverse = gain_by_products(gram, gain, gain.power)
        return _Solution(matrix, (inverse, matrix, inverse))  # a target, without gradient, multiplies none
    x, vectors, keep = (svd_basis if solver == "svd" else gram_basis)(y, "spectral_filter")
    g, x = gain.on(x, keep), torch.where(keep, x, 1.0)
    x, g, u = x.unsqueeze(-2).to(y.dtype), g.unsqueeze(-2).to(y.dtype), vectors.to(y.dtype)
    return _Solution(u * g @ u.mT, (u / x, (u * (g.detach() / x)).mT))


def _check_choices(branch: str, scale: str, solver: str, estimator: str = "batch") -> None:
    choices: list[tuple[str, str, Any]] = [
        ("branch", branch, Side),
        ("scale", scale, Scale),
        ("solver", solver, Solver),
        ("estimator", estimator, Estimator),
    ]
    for what, given, kind in choices:
        if given not in get_args(kind):
            raise unknown(what, given, get_args(kind))


def spectral_filter(
    z: Tensor,
    gain: str | Gain,
    *,
    branch: Side = "online",
    scale: Scale = "rms",
    solver: Solver = "auto",
) -> Tensor:
    """F_g(Z) = U diag(s g(x)) V^T: the batch's singular values times a gain (RDM).

    Gradient. Online, the filter is a linear predictor that is held constant: P = Z W, W = V diag(g(x)) V^T,
    dL/dZ = (dL/dP) W. Target: none at all.

    Null space. Directions with s_i <= tol s_1 get gain 0, tol as in `spectra.rank_tolerance`: a batch-normed
    batch's columns sum to zero, so that a null direction is the normal case, and a negative power of what
    rounding leaves there would drown the rest.

    Solvers. `gram` builds the Gram matrix of the smaller side and decomposes it in float64; the other products
    run in float32 (float64 for a float64 input), with autocast off; allowing TF32 lowers them to three digits.
    `svd` is the definition, in float64. `iterative` takes products alone, see `products`: it never waits for a
    GPU, resolves directions down to 1e-3 s_1 in float32, and passes on what is not finite. Whatever the solver,
    power:2 and other even powers are products of the Gram matrix. `auto` is `iterative` on a GPU for power:p
    with p in {-1, -0.5, 0.5, 1}; else `gram`, which is faster on a CPU at every size.

    Under `torch.distributed` the basis is that of all ranks' rows, N counts them all, and it acts on the local
    rows: every rank calls it, with the same shape.

    Args:
        z: (..., N, D), any float dtype.
        gain: a `Gain` or its name, see `parse_gain`.
        branch: whose gradient rule applies.
        scale: "rms", x = s / sqrt(N); "raw", x = s, as the authors wrote it (it depends on the batch size).
        solver: "auto", "gram", "svd" or "iterative".

    Returns:
        (..., N, D); float32, since half precision would overflow (power:2), or float64 for a float64 input.

    Raises:
        UserError: `z` is not a (..., N, D) of numbers, or gain, branch, scale or solver is unknown.
        NonFiniteError: `z` has a NaN or an infinity, and a solver decomposes it.
        RuntimeError: the decomposition did not converge, nor after a jitter.

    Example:
        >>> spectral_filter(torch.diag(torch.tensor([4.0, 1.0])), "power:1", scale="raw")
        tensor([[16.,  0.],
                [ 0.,  1.]])
    """
    gain = parse_gain(gain) if isinstance(gain, str) else gain
    _check_choices(branch, scale, solver)
    check_batch(z, "spectral_filter")
    if branch == "target":
        z = z.detach()
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        rows = gather_rows(z)  # (..., N, D)
        n, d = rows.shape[-2:]
        y = rows / math.sqrt(n) if scale == "rms" else rows
        matrix, between = _solve(y, gain, solver)
        if d < n:
            return z @ matrix
        local = z.shape[-2]
        matrix = matrix.narrow(-2, 0 if n == local else dist.get_rank() * local, local)
        return _HeldMap.apply(z, rows, y, matrix, *between)  # type: ignore[no-any-return]


def _gain_of_gram(gram: Tensor, gain: Gain, solver: Solver) -> Tensor:
    """V diag(g(x)) V^T of a running V diag(x^2) V^T (D, D); an "svd" is the "gram"."""
    if gain.gram_power:
        power: Tensor = torch.linalg.matrix_power(gram, gain.gram_power)
        return power
    if choose_solver(solver, gain, gram.device) == "iterative":
        return gain_by_products(gram.float(), gain, gain.power)[0]
    x, v, keep = eigenbasis(gram, rank_tolerance(len(gram), len(gram), torch.float32), "running spectrum")
    return v * gain.on(x, keep) @ v.mT


class SpectralFilter(nn.Module):
    """`spectral_filter` as a map of a branch: (..., N, D) -> (..., N, D), no parameters.

    The spectrum is that of the batch, each leading dimension (view) alone and without any state; or, by
    `estimator="ema"`, that of a running correlation E[z z^T] (D x D) over all views and ranks, which is
    decomposed every few steps and filters in D. The running one serves batches smaller than the rank they are to
    show, and many devices: one all-reduce of D x D where the other gathers the features. It begins with the
    first batch, follows training only, and costs a decomposition of D x D each `every` steps (at D = 2048 seconds
    on a CPU; D = 256 is milliseconds).

    Args:
        gain: its name: `power:p`, `log`, `log1p` or `log1p2`.
        branch: "online" (a linear predictor held constant) or "target" (no gradient).
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: "auto", "gram", "svd" or "iterative", see `spectral_filter`. For "ema", which has no batch to take
            an SVD of, "svd" is "gram".
        estimator: "batch" or "ema".
        dim: D, for "ema".
        momentum: of the running correlation; 1 / (1 - momentum) steps is how far it looks back.
        every: training steps from one decomposition of it to the next.

    Raises:
        UserError: gain, branch, scale, solver or estimator is unknown; "ema" without `dim`, with a momentum
            outside [0, 1) or with `every` below 1.

    Example:
        >>> SpectralFilter("power:-0.5", branch="target")
        SpectralFilter(power:-0.5, branch=target, scale=rms)
    """

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
                raise UserError("a filter with estimator='ema' keeps a D x D correlation: give dim, the width D")
            solve = functools.partial(_gain_of_gram, gain=self.gain, solver=solver)
            self.running = RunningMap(solve, dim, momentum=momentum, every=every, scale=scale)

    def forward(self, z: Tensor) -> Tensor:
        """Filter a batch, each leading dimension (view) alone.

        Raises:
            UserError: as `spectral_filter`; or "ema" has seen no batch in training mode yet.
        """
        if self.running is None:
            return spectral_filter(z, self.gain, branch=self.branch, scale=self.scale, solver=self.solver)
        check_batch(z, "SpectralFilter")
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            held: Tensor = self.running(z.detach())
            return (z.detach() if self.branch == "target" else z) @ held.to(z.dtype)

    def extra_repr(self) -> str:
        """Gain, branch and scale, and what else is not the default."""
        parts = [self.gain.name, f"branch={self.branch}", f"scale={self.scale}"]
        if self.solver != "auto":
            parts.append(f"solver={self.solver}")
        if self.running is not None:
            parts.append(f"estimator=ema, momentum={self.running.momentum:g}, every={self.running.every}")
        return ", ".join(parts)
