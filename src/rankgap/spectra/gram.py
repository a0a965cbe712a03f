"""Gram matrices, and the spectra and directions that they hold.

Z is a batch of outputs whose rows are samples. Its thin SVD is Z = U diag(s) V^T with s_1 >= s_2 >= ... >= 0. Both
factors come from the smaller Gram matrix (Z Z^T or Z^T Z) in float64, which autocast leaves alone, on the device
that `float64_device` names. Squaring halves the digits: singular values below `RESOLUTION` s_1 cannot be told from
rounding and are returned as 0. Nothing here carries a gradient.

Shapes: N rows (samples), D columns (features), R = min(N, D), `...` leading batch dimensions.
Every decomposition waits for a GPU, because torch reads its status on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rankgap.errors import NonFiniteError, UserError
from rankgap.spectra.float64 import double, with_float64

_Solution = TypeVar("_Solution")

EPS64 = torch.finfo(torch.float64).eps

# The eigenvalues of float64 Gram matrices were measured to err by up to 6 eps l_1 (at 2048 x 2048).
_GRAM_NOISE = 16 * EPS64
RESOLUTION = math.sqrt(_GRAM_NOISE)  # 2^-24 = 6e-8, relative to the largest singular value

_WIDE = 2**14  # columns of a wide batch that are cast at a time

_NotConverged: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Basis(NamedTuple):
    """The part of Z's decomposition that its smaller Gram matrix holds.

    Args:
        s: singular values (..., R), float64, descending.
        vectors: (..., R, R) float64, in the order of `s`: left ones (U) if N <= D, right ones (V) otherwise.
        keep: (..., R) bool, False in the null space (see `rank_tolerance`).
    """

    s: Tensor
    vectors: Tensor
    keep: Tensor


def rank_tolerance(n: int, d: int, dtype: torch.dtype) -> float:
    """The relative singular value at and below which a direction counts as null: s_i <= tol s_1.

    This is max(N, D) eps, as in `torch.linalg.matrix_rank`, with the eps of Z's original dtype, and two bounds.
    Half precision uses the eps of float32: with its own eps (0.008 for bfloat16) nothing would be left from
    D = 128 upwards. Float64 uses the resolution of a Gram matrix, sqrt(max(N, D) eps). A batch-normed batch that
    was rounded to bfloat16 therefore keeps its null direction, at about 5e-4 s_1. That is harmless: even whitening
    gives it no more than the 1 / R of the energy that every direction gets.

    Args:
        n: number of rows.
        d: number of columns.
        dtype: dtype of the input, before it was cast.

    Example:
        >>> round(rank_tolerance(256, 2048, torch.float32), 6)
        0.000244
    """
    eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return max(max(n, d) * eps, math.sqrt(max(n, d) * EPS64))


def check_batch(z: Tensor, name: str) -> None:
    """Raise `UserError` unless `z` is a non-empty floating-point (..., N, D)."""
    if not isinstance(z, Tensor):  # features are kept as arrays: `read_features` and pandas give them
        raise UserError(f"{name} expects a tensor, got {type(z).__name__}; pass torch.as_tensor(z)")
    if z.ndim < 2 or z.numel() == 0 or not z.is_floating_point():
        raise UserError(
            f"{name} expects a non-empty floating-point tensor (..., N, D) whose rows are samples; "
            f"got {str(z.dtype).removeprefix('torch.')} of shape {tuple(z.shape)}"
        )


def is_finite(z: Tensor) -> bool:
    """Whether all values of a batch are finite; unlike `isfinite`, this makes no copy of it."""
    return bool(torch.stack(torch.aminmax(z)).isfinite().all())  # NaN is both


def check_finite(z: Tensor, name: str) -> None:
    """Raise `UserError` unless all values are finite; the message begins with `name`."""
    if not is_finite(z):
        raise UserError(f"{name}: {int((~z.isfinite()).sum())} of {z.numel()} values are not finite")


def cast_columns(z: Tensor, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """The columns of `z` (..., N, D) in another dtype: all at once, or 16,384 at a time if D is more and N <= D.

    A sum over columns then needs no whole copy of a batch of 262,144 prototypes in float64.
    """
    for part in z.split(_WIDE, -1) if z.shape[-2] <= z.shape[-1] else (z,):
        yield with_float64(part).to(dtype)


def lower_gram(z: Tensor, dtype: torch.dtype = torch.float64, *, center: bool = False) -> Tensor:
    """Z Z^T or Z^T Z, whichever is smaller, on and below the diagonal, which is all that eigen-solvers read.

    It is computed in up to eight block rows, so that just over half of the products are done. Blocks above
    the diagonal are zero.

    Args:
        z: (..., N, D), any float dtype.
        dtype: the dtype of products and result.
        center: subtract the mean row first.
    """
    r = min(z.shape[-2:])
    block = max(math.ceil(r / 8), 64)
    gram: Tensor | None = None
    for part in cast_columns(z, dtype):
        part = part - part.mean(-2, keepdim=True) if center else part
        part = part if z.shape[-2] <= z.shape[-1] else part.mT
        gram = part.new_zeros(*part.shape[:-1], r) if gram is None else gram
        for start in range(0, r, block):
            stop = min(start + block, r)
            gram[..., start:stop, :stop] += part[..., start:stop, :] @ part[..., :stop, :].mT
    assert gram is not None
    return gram


def solve_gram(solve: Callable[[Tensor], _Solution], gram: Tensor, step: str) -> _Solution:
    """Apply `solve` to a float64 Gram matrix, and once more with jitter if it does not converge.

    Args:
        solve: `torch.linalg.eigh` or `eigvalsh`.
        gram: (..., R, R); only the lower triangle is read.
        step: what the decomposition is for; error messages begin with it.

    Raises:
        NonFiniteError: the matrix has a NaN or an infinity on its diagonal.
        RuntimeError: the decomposition did not converge, even with jitter.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    if not diagonal.sum().isfinite():  # LAPACK accepts NaN silently, and may return finite numbers
        raise NonFiniteError(f"{step}: the input is not finite")
    try:
        return solve(gram)
    except _NotConverged:
        shift = gram.shape[-1] * EPS64 * diagonal.mean(-1, keepdim=True)
    try:
        return solve(gram + torch.diag_embed(shift.expand_as(diagonal)))
    except _NotConverged as error:
        raise RuntimeError(
            f"{step}: the eigen-decomposition of a {gram.shape[-1]} x {gram.shape[-1]} Gram matrix did not "
            "converge, even after jitter was added to its diagonal"
        ) from error


def eigenbasis(gram: Tensor, tolerance: float, step: str) -> Basis:
    """The basis that a float64 Gram matrix holds.

    Args:
        gram: (..., R, R) float64; only the lower triangle is read.
        tolerance: the relative singular value at and below which a direction is null.
        step: what the decomposition is for; error messages begin with it.

    Raises:
        NonFiniteError, RuntimeError: as `solve_gram`.
    """
    eigenvalues, vectors = solve_gram(torch.linalg.eigh, gram, step)
    s = eigenvalues.clamp_min(0).sqrt().flip(-1)
    return Basis(s, vectors.flip(-1), s > tolerance * s[..., :1])


def gram_basis(z: Tensor, step: str) -> Basis:
    """Singular values and the shorter side's singular vectors of `z` (..., N, D).

    Args:
        z: any float dtype; computed in float64.
        step: what the decomposition is for; error messages begin with it.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge, even with jitter.
    """
    return eigenbasis(lower_gram(z.detach()), rank_tolerance(z.shape[-2], z.shape[-1], z.dtype), step)


def svd_basis(z: Tensor, step: str) -> Basis:
    """`gram_basis` from the singular value decomposition itself, which is slower but loses no digits to squaring.

    Args:
        z: any float dtype; computed in float64.
        step: what the decomposition is for; error messages begin with it.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge.
    """
    if not z.sum().isfinite():
        raise NonFiniteError(f"{step}: the input is not finite")
    u, s, vt = torch.linalg.svd(double(z.detach()), full_matrices=False)
    keep = s > rank_tolerance(z.shape[-2], z.shape[-1], z.dtype) * s[..., :1]
    return Basis(s, u if z.shape[-2] <= z.shape[-1] else vt.mT, keep)


def singular_values(z: Tensor, *, center: bool = False) -> Tensor:
    """Singular values, descending: (..., N, D) -> (..., min(N, D)), float64.

    Those below `RESOLUTION` s_1 (6e-8 s_1) are 0: a float64 Gram matrix does not resolve them.

    Args:
        z: any float dtype; shape and values are not checked (see `effective_rank`).
        center: subtract the mean row first.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge, even with jitter.
    """
    return gram_singular_values(lower_gram(z.detach(), center=center), "singular values")


def gram_singular_values(gram: Tensor, step: str) -> Tensor:
    """`singular_values` from a Gram matrix (..., R, R) float64, of which only the lower triangle is read."""
    return above_noise(solve_gram(torch.linalg.eigvalsh, gram, step).flip(-1)).sqrt()


def above_noise(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a float64 Gram matrix, descending, with 0 for those that cannot be told from rounding."""
    return torch.where(eigenvalues > _GRAM_NOISE * eigenvalues[..., :1], eigenvalues, 0.0)
