"""Gram matrices, and the spectra and directions that they hold.

Z is a batch of outputs, rows are samples. Its thin SVD is Z = U diag(s) V^T with s_1 >= s_2 >= ... >= 0. All of
it comes from the smaller Gram matrix (Z Z^T or Z^T Z) in float64, which autocast leaves alone. Squaring halves
the digits: singular values below 6e-8 s_1 cannot be told from rounding and are given as 0. Nothing here carries
a gradient.

Shapes: N rows (samples), D columns (features), R = min(N, D), `...` leading batch dimensions.
Every decomposition waits for a GPU: torch reads its status on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rankgap.errors import NonFiniteError, UserError

_Solution = TypeVar("_Solution")

EPS64 = torch.finfo(torch.float64).eps

_GRAM_NOISE = 16 * EPS64  # eigenvalues of a float64 Gram matrix err by up to 6 eps l_1 (seen at 2048 x 2048)

_NotConverged: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Basis(NamedTuple):
    """What the smaller Gram matrix knows of Z.

    Args:
        s: singular values (..., R), float64, descending.
        vectors: (..., R, R) float64, columns beside `s`: left ones (U) where N <= D, right ones (V) else.
        keep: (..., R) bool, False in the null space (see `rank_tolerance`).
    """

    s: Tensor
    vectors: Tensor
    keep: Tensor


def rank_tolerance(n: int, d: int, dtype: torch.dtype) -> float:
    """The relative singular value at and below which a direction counts as null: s_i <= tol s_1.

    max(N, D) eps, as `torch.linalg.matrix_rank` has it, with eps of the dtype that Z came in. Two bounds: eps of
    float32 where Z came in half precision (with its own eps, 0.008 for bfloat16, nothing would be left from
    D = 128 on), and for float64 what a Gram matrix resolves, sqrt(max(N, D) eps). So a batch-normed batch that was
    rounded to bfloat16 keeps its null direction, at some 5e-4 s_1: harmless, even whitening gives it no more than
    the 1 / R of the energy that each direction gets.

    Args:
        n: rows.
        d: columns.
        dtype: of the input, before it was cast.

    Example:
        >>> round(rank_tolerance(256, 2048, torch.float32), 6)
        0.000244
    """
    eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return max(max(n, d) * eps, math.sqrt(max(n, d) * EPS64))


def check_batch(z: Tensor, name: str) -> None:
    """Raise `UserError` unless `z` is a non-empty floating-point (..., N, D)."""
    if z.ndim < 2 or z.numel() == 0 or not z.is_floating_point():
        raise UserError(
            f"{name} wants a non-empty floating-point tensor (..., N, D), rows are samples; "
            f"got {str(z.dtype).removeprefix('torch.')} of shape {tuple(z.shape)}"
        )


def lower_gram(z: Tensor) -> Tensor:
    """Z Z^T or Z^T Z, whichever is smaller, on and below the diagonal: all that eigen-solvers read.

    In up to eight block rows, so that little over half of the products are done; above their diagonal it is zero.
    """
    z = z if z.shape[-2] <= z.shape[-1] else z.mT
    r = z.shape[-2]
    gram = z.new_zeros(*z.shape[:-1], r)
    block = max(math.ceil(r / 8), 64)
    for start in range(0, r, block):
        stop = min(start + block, r)
        gram[..., start:stop, :stop] = z[..., start:stop, :] @ z[..., :stop, :].mT
    return gram


def solve_gram(solve: Callable[[Tensor], _Solution], gram: Tensor, step: str) -> _Solution:
    """`solve` of a float64 Gram matrix, of which the lower triangle counts; once more with jitter if need be.

    Args:
        solve: `torch.linalg.eigh` or `eigvalsh`.
        gram: (..., R, R).
        step: what it is for; names the step in an error.

    Raises:
        NonFiniteError: the matrix has a NaN or an infinity on its diagonal.
        RuntimeError: the decomposition did not converge, nor after a jitter.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    if not diagonal.sum().isfinite():  # LAPACK takes NaN without complaint, and may answer with finite numbers
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
            "converge, with jitter neither"
        ) from error


def eigenbasis(gram: Tensor, tolerance: float, step: str) -> Basis:
    """The basis that a float64 Gram matrix holds.

    Args:
        gram: (..., R, R) float64, of which the lower triangle counts.
        tolerance: the relative singular value at and below which a direction is null.
        step: what it is for; names the step in an error.

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
        step: what it is for; names the step in an error.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge, nor after a jitter.
    """
    return eigenbasis(lower_gram(z.detach().double()), rank_tolerance(z.shape[-2], z.shape[-1], z.dtype), step)


def svd_basis(z: Tensor, step: str) -> Basis:
    """`gram_basis` from the singular value decomposition itself: slower, but squaring halves no digits.

    Args:
        z: any float dtype; computed in float64.
        step: what it is for; names the step in an error.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge.
    """
    if not z.sum().isfinite():
        raise NonFiniteError(f"{step}: the input is not finite")
    u, s, vt = torch.linalg.svd(z.detach().double(), full_matrices=False)
    keep = s > rank_tolerance(z.shape[-2], z.shape[-1], z.dtype) * s[..., :1]
    return Basis(s, u if z.shape[-2] <= z.shape[-1] else vt.mT, keep)


def singular_values(z: Tensor, *, center: bool = False) -> Tensor:
    """Singular values, descending: (..., N, D) -> (..., min(N, D)), float64.

    Those below 6e-8 s_1 are 0: a Gram matrix in float64 holds no more.

    Args:
        z: any float dtype; shape and values are not checked (see `effective_rank`).
        center: take the mean row away first.

    Raises:
        NonFiniteError: `z` has a NaN or an infinity.
        RuntimeError: the decomposition did not converge, nor after a jitter.
    """
    z = z.detach().double()
    if center:
        z = z - z.mean(-2, keepdim=True)
    eigenvalues = solve_gram(torch.linalg.eigvalsh, lower_gram(z), "singular values").flip(-1)
    return above_noise(eigenvalues).sqrt()


def above_noise(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a float64 Gram matrix, descending, with 0 for what cannot be told from rounding."""
    return torch.where(eigenvalues > _GRAM_NOISE * eigenvalues[..., :1], eigenvalues, 0.0)
