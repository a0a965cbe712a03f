"""Spectral filters: a gain on a batch's singular values, on the online or on the target branch.

Z has the thin SVD U diag(s) V^T. A filter with gain g gives F_g(Z) = U diag(s g(x)) V^T (RDM: Zhuo et al. 2023),
with x = s / sqrt(N) so that a gain means the same at every batch size.

Shapes: N rows of all ranks, D columns, R = min(N, D), `...` leading batch dimensions (views), each filtered alone.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankgap.errors import unknown
from rankgap.gains import GAINS as GAINS
from rankgap.gains import Gain as Gain
from rankgap.gains import parse_gain as parse_gain
from rankgap.spectra import check_batch, gather_rows, gram_basis

Side = Literal["online", "target"]
Scale = Literal["rms", "raw"]


class _HeldMap(torch.autograd.Function):
    """P = Z W with W held constant, for fewer rows than columns: W (D x D) is never formed.

    With V = Zc^T U / s, W = V diag(g) V^T gives dL/dZ = (dL/dP) W = ((dL/dP) Zc^T) U diag(g / s^2) U^T Zc. Forward
    takes U diag(g) U^T Zc, which is one large product less than Z W written so. The factors stay apart: rounded
    to float32, U diag(g / s^2) U^T would err by (s_1 / s_i)^2 where they err by s_1 / s_i.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Tensor, u: Tensor, g: Tensor, s: Tensor, first: int) -> Tensor:
        """`z` (..., N', D): this rank's rows, from `first` on, of `rows` Zc (..., N, D); `g`, `s` (..., 1, N)."""
        ctx.save_for_backward(rows, u / s, u * (g / s))
        return (u.narrow(-2, first, z.shape[-2]) * g @ u.mT) @ rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradient by W."""
        rows, left, right = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):  # a caller may go backward inside autocast
            return grads[0] @ rows.mT @ left @ right.mT @ rows, None, None, None, None, None


def spectral_filter(z: Tensor, gain: str | Gain, *, branch: Side = "online", scale: Scale = "rms") -> Tensor:
    """F_g(Z) = U diag(s g(x)) V^T: the batch's singular values times a gain (RDM).

    Gradient. Online, the filter is a linear predictor that is held constant: P = Z W, W = V diag(g(x)) V^T,
    dL/dZ = (dL/dP) W. Target: none at all.

    Null space. Directions with s_i <= tol s_1 get gain 0, tol as in `spectra.rank_tolerance`: a batch-normed
    batch's columns sum to zero, so that a null direction is the normal case, and a negative power of what
    rounding leaves there would drown the rest.

    Precision. The Gram matrix of the smaller side is built and decomposed in float64, the other products run in
    float32 (float64 for a float64 input), with autocast off; allowing TF32 lowers them to three digits.

    Under `torch.distributed` the basis is that of all ranks' rows, N counts them all, and it acts on the local
    rows: every rank calls it, with the same shape.

    Args:
        z: (..., N, D), any float dtype.
        gain: a `Gain` or its name, see `parse_gain`.
        branch: whose gradient rule applies.
        scale: "rms", x = s / sqrt(N); "raw", x = s, as the authors wrote it (it depends on the batch size).

    Returns:
        (..., N, D); float32, since half precision would overflow (power:2), or float64 for a float64 input.

    Raises:
        UserError: `z` is not a (..., N, D) of numbers, or gain, branch or scale is unknown.
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge, nor after a jitter.

    Example:
        >>> spectral_filter(torch.diag(torch.tensor([4.0, 1.0])), "power:1", scale="raw")
        tensor([[16.,  0.],
                [ 0.,  1.]])
    """
    gain = parse_gain(gain) if isinstance(gain, str) else gain
    if branch not in get_args(Side):
        raise unknown("branch", branch, get_args(Side))
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    check_batch(z, "spectral_filter")
    if branch == "target":
        z = z.detach()
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        rows = gather_rows(z)  # (..., N, D)
        n, d = rows.shape[-2:]
        s, vectors, keep = gram_basis(rows, "spectral_filter")
        s = torch.where(keep, s, 1.0)
        g = torch.where(keep, gain(s / math.sqrt(n) if scale == "rms" else s), 0.0)
        s, g, vectors = s.unsqueeze(-2).to(z.dtype), g.unsqueeze(-2).to(z.dtype), vectors.to(z.dtype)
        if d < n:
            return z @ (vectors * g @ vectors.mT)
        first = 0 if n == z.shape[-2] else dist.get_rank() * z.shape[-2]
        return _HeldMap.apply(z, rows, vectors, g, s, first)  # type: ignore[no-any-return]


class SpectralFilter(nn.Module):
    """`spectral_filter` as a map of a branch: (..., N, D) -> (..., N, D), no parameters, no state.

    Args:
        gain: its name: `power:p`, `log`, `log1p` or `log1p2`.
        branch: "online" (a linear predictor held constant) or "target" (no gradient).
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.

    Raises:
        UserError: gain, branch or scale is unknown.

    Example:
        >>> SpectralFilter("power:-0.5", branch="target")
        SpectralFilter(power:-0.5, branch=target, scale=rms)
    """

    def __init__(self, gain: str, branch: Side = "online", scale: Scale = "rms") -> None:
        super().__init__()
        self.gain = parse_gain(gain)
        if branch not in get_args(Side):
            raise unknown("branch", branch, get_args(Side))
        if scale not in get_args(Scale):
            raise unknown("scale", scale, get_args(Scale))
        self.branch, self.scale = branch, scale

    def forward(self, z: Tensor) -> Tensor:
        """Filter a batch, each leading dimension (view) alone."""
        return spectral_filter(z, self.gain, branch=self.branch, scale=self.scale)

    def extra_repr(self) -> str:
        """Gain, branch and scale."""
        return f"{self.gain.name}, branch={self.branch}, scale={self.scale}"
