"""Spectra of a batch: effective rank and its relatives.

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
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from rankgap.errors import NonFiniteError, UserError, unknown

Convention = Literal["correlation", "features"]
_Solution = TypeVar("_Solution")

LARGE = 512  # rows and columns from which a decomposition in float32 saves time
_EPS64 = torch.finfo(torch.float64).eps
_GRAM_NOISE = 16 * _EPS64  # eigenvalues of a float64 Gram matrix err by up to 6 eps l_1 (seen at 2048 x 2048)
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
    return max(max(n, d) * eps, math.sqrt(max(n, d) * _EPS64))


def gather_rows(z: Tensor) -> Tensor:
    """The rows of all ranks, without gradient: (..., N, D) -> (..., world x N, D), in the order of ranks.

    Every rank calls it, with the same shape. Without `torch.distributed`, or in a world of one, it is `z` itself
    (detached).
    """
    z = z.detach()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return z
    parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.contiguous())
    return torch.cat(parts, dim=-2)


def world_sum(x: Tensor) -> Tensor:
    """`x` summed over the ranks of a distributed run (in place); `x` itself in a run of one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def check_batch(z: Tensor, name: str) -> None:
    """Raise `UserError` unless `z` is a non-empty floating-point (..., N, D)."""
    if z.ndim < 2 or z.numel() == 0 or not z.is_floating_point():
        raise UserError(
            f"{name} wants a non-empty floating-point tensor (..., N, D), rows are samples; "
            f"got {str(z.dtype).removeprefix('torch.')} of shape {tuple(z.shape)}"
        )


def _lower_gram(z: Tensor) -> Tensor:
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
        shift = gram.shape[-1] * _EPS64 * diagonal.mean(-1, keepdim=True)
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
    return eigenbasis(_lower_gram(z.detach().double()), rank_tolerance(z.shape[-2], z.shape[-1], z.dtype), step)


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
    eigenvalues = solve_gram(torch.linalg.eigvalsh, _lower_gram(z), "singular values").flip(-1)
    return above_noise(eigenvalues).sqrt()


def above_noise(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a float64 Gram matrix, descending, with 0 for what cannot be told from rounding."""
    return torch.where(eigenvalues > _GRAM_NOISE * eigenvalues[..., :1], eigenvalues, 0.0)


def effective_rank_of(s: Tensor, of: Convention = "correlation") -> Tensor:
    """Effective rank of a spectrum: exp(-sum_i p_i ln p_i), 0 ln 0 = 0 (Roy & Vetterli 2007).

    It neither checks nor waits for a GPU: an all-zero spectrum gives NaN.

    Args:
        s: singular values (..., R), in any order.
        of: "correlation", p_i = s_i^2 / sum_j s_j^2, the eigenvalues of Z^T Z / N (RDM); or "features",
            p_i = s_i / sum_j s_j (Roy & Vetterli).

    Returns:
        (...), in the dtype of `s`; between 1 and R.

    Raises:
        UserError: an unknown convention.

    Example:
        >>> s = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
        >>> print(f"{effective_rank_of(s):.6f} {effective_rank_of(s, 'features'):.6f}")
        2.940198 3.596115
    """
    if of not in get_args(Convention):
        raise unknown("convention", of, get_args(Convention))
    p = s.square() if of == "correlation" else s
    p = p / p.sum(-1, keepdim=True)
    return exp_entropy(p)


def exp_entropy(p: Tensor) -> Tensor:
    """exp(-sum_i p_i ln p_i) over the last dimension, 0 ln 0 = 0."""
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy.exp()


def checked_spectrum(z: Tensor, name: str, *, center: bool = False, shares: bool = False) -> Tensor:
    """`singular_values` for the user's own tensors: what has no rank is an error.

    Args:
        z: (..., N, D).
        name: of the caller, for errors.
        center: as `singular_values`.
        shares: only each s_i^2 / sum s^2 matters, so that large float32 batches are decomposed in float32: what
            rounding does to such shares moved no rank by more than 4e-5, of any spectrum tried (a test holds it).
    """
    check_batch(z, name)
    z = z.detach()
    norm = torch.linalg.vector_norm(z, dim=(-2, -1), dtype=torch.promote_types(z.dtype, torch.float32))
    if not norm.isfinite().all():
        if not z.isfinite().all():
            raise UserError(f"{name}: {int((~z.isfinite()).sum())} of {z.numel()} values are not finite")
        norm = torch.linalg.vector_norm(z, dim=(-2, -1), dtype=torch.float64)
    ordinary = z.dtype != torch.float64 and bool(((norm > 1e-12) & (norm < 1e12)).all())
    if shares and ordinary and not center and min(z.shape[-2:]) >= LARGE:
        squares: Tensor = solve_gram(torch.linalg.eigvalsh, _lower_gram(z.float()), name).double()
        return squares.clamp_min(0).sqrt().flip(-1)
    s = singular_values(z, center=center)
    if (s[..., 0] <= max(z.shape[-2:]) * _EPS64 * norm).any():  # centring leaves rounding of equal rows
        what = "all rows are equal, nothing is left after centring" if center else "all values are zero"
        raise UserError(f"{name}: {what}, so no rank is defined")
    return s


def effective_rank(z: Tensor, of: Convention = "correlation", center: bool = False) -> Tensor:
    """Effective rank of a batch: the exponential of its spectrum's entropy, in [1, min(N, D)].

    exp(-sum_i p_i ln p_i) with p as in `effective_rank_of`. The default is the RDM paper's, of the uncentred
    correlation matrix Z^T Z / N; the two conventions differ a lot and must not be compared with one another.
    Rows are those given: under `torch.distributed`, `gather_rows` first.

    The checks wait for a GPU; in a hot loop use `singular_values` and `effective_rank_of`.

    Args:
        z: (..., N, D), any float dtype.
        of: "correlation" or "features".
        center: take the mean row away first.

    Returns:
        (...), 0-d for a matrix; float64, no gradient.

    Raises:
        UserError: not a (..., N, D) of numbers, non-finite, all zero, or an unknown convention.

    Example:
        >>> round(float(effective_rank(torch.eye(5))), 6)
        5.0
    """
    s = checked_spectrum(z, "effective_rank", center=center, shares=of == "correlation")
    return effective_rank_of(s, of)


def rank_difference(
    online: Tensor, target: Tensor, of: Convention = "correlation", center: bool = False
) -> Tensor:
    """erank(target) - erank(online): above 0 dimensions grow, at or below 0 they collapse (RDM).

    Args:
        online: (..., N, D).
        target: (..., N', D'), the same leading dimensions.
        of: as in `effective_rank`.
        center: as in `effective_rank`.

    Returns:
        (...), float64, no gradient.

    Raises:
        UserError: as `effective_rank`.
    """
    return effective_rank(target, of, center) - effective_rank(online, of, center)


def rankme(z: Tensor) -> Tensor:
    """RankMe: exp(-sum_i p_i ln p_i), p_i = s_i / sum_j s_j + 1e-7 (Garrido et al. 2023).

    As published: uncentred, and p is not normalised again, so that it may pass min(N, D) a little. The paper
    takes 25,600 samples.

    Args:
        z: (..., N, D), any float dtype.

    Returns:
        (...), float64, no gradient.

    Raises:
        UserError: as `effective_rank`.
    """
    s = checked_spectrum(z, "rankme")
    return exp_entropy(s / s.sum(-1, keepdim=True) + 1e-7)


def mean_energy(z: Tensor) -> Tensor:
    """The share of the energy |Z|_F^2 that lies in the mean row, N |mean|^2 / |Z|_F^2, in [0, 1].

    Near 1 the uncentred top direction is the mean, and little is left for the others to rank by. It neither
    checks nor waits for a GPU: all zero gives NaN.

    Args:
        z: (..., N, D), any float dtype.

    Returns:
        (...), float64, no gradient.
    """
    z = z.detach().double()
    return z.shape[-2] * z.mean(-2).square().sum(-1) / z.square().sum((-2, -1))
