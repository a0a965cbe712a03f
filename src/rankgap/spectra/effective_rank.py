"""Effective rank and its relatives: one number for how many directions a batch uses.

Shapes: N rows (samples), D columns (features), R = min(N, D), `...` leading batch dimensions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rankgap.errors import UserError, unknown
from rankgap.spectra.float64 import with_float64
from rankgap.spectra.gram import (
    EPS64,
    cast_columns,
    check_batch,
    check_finite,
    lower_gram,
    singular_values,
    solve_gram,
)

Convention = Literal["correlation", "features"]

LARGE = 512  # rows and columns from which a decomposition in float32 saves time


def effective_rank_of(s: Tensor, of: Convention = "correlation") -> Tensor:
    """Effective rank of a spectrum: exp(-sum_i p_i ln p_i), 0 ln 0 = 0 (Roy & Vetterli 2007).

    The function neither checks its input nor waits for a GPU: an all-zero spectrum gives NaN.

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
    """`singular_values` for the user's own tensors: input that has no rank is an error.

    Args:
        z: (..., N, D).
        name: the caller's name, for errors.
        center: as in `singular_values`.
        shares: only each s_i^2 / sum s^2 matters, so large float32 batches are decomposed in float32. Rounding
            these shares moved no effective rank by more than 4e-5 for any spectrum tried (a test checks this).
    """
    check_batch(z, name)
    z = with_float64(z.detach())
    norm = torch.linalg.vector_norm(z, dim=(-2, -1), dtype=torch.promote_types(z.dtype, torch.float32))
    if not norm.isfinite().all():
        check_finite(z, name)
        norm = torch.linalg.vector_norm(z, dim=(-2, -1), dtype=torch.float64)
    ordinary = z.dtype != torch.float64 and bool(((norm > 1e-12) & (norm < 1e12)).all())
    if shares and ordinary and not center and min(z.shape[-2:]) >= LARGE:
        squares: Tensor = solve_gram(torch.linalg.eigvalsh, lower_gram(z, torch.float32), name).double()
        return squares.clamp_min(0).sqrt().flip(-1)
    s = singular_values(z, center=center)
    if (s[..., 0] <= max(z.shape[-2:]) * EPS64 * norm).any():  # centring equal rows leaves only rounding
        what = "all rows are equal and nothing is left after centring" if center else "all values are zero"
        raise UserError(f"{name}: {what}, so no rank is defined")
    return s


def effective_rank(z: Tensor, of: Convention = "correlation", center: bool = False) -> Tensor:
    """Effective rank of a batch: the exponential of its spectrum's entropy, in [1, min(N, D)].

    exp(-sum_i p_i ln p_i) with p as in `effective_rank_of`. The default is the RDM paper's convention, the rank of
    the uncentred correlation matrix Z^T Z / N. The two conventions differ a lot and must not be compared with one
    another. Only the rows given are counted: under `torch.distributed`, call `gather_rows` first.

    The checks wait for a GPU. In a hot loop use `singular_values` and `effective_rank_of`.

    Args:
        z: (..., N, D), any float dtype.
        of: "correlation" or "features".
        center: subtract the mean row first.

    Returns:
        (...), 0-d for a matrix; float64, no gradient.

    Raises:
        UserError: `z` is not a floating-point (..., N, D), is not finite or is all zero, or the convention is
            unknown.

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

    As published: uncentred, and p is not normalised again, so the result may slightly exceed min(N, D). The paper
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

    Near 1 the uncentred top direction is the mean, and the other directions hold little energy. The function
    neither checks its input nor waits for a GPU: an all-zero batch gives NaN.

    Args:
        z: (..., N, D), any float dtype.

    Returns:
        (...), float64, no gradient.
    """
    shares = [(part.mean(-2).square().sum(-1), part.square().sum((-2, -1))) for part in cast_columns(z.detach())]
    of_mean, of_all = (torch.stack(energies).sum(0) for energies in zip(*shares, strict=True))
    return z.shape[-2] * of_mean / of_all
