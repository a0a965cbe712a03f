"""A gain of a Gram matrix by matrix products alone, for devices on which a decomposition is slow.

From K = U diag(x^2) U^T (..., R, R) it computes U diag(g(x)) U^T. Nothing here waits for a GPU, branches on a
value, or divides by a number that rounding left.

A coupled Newton-Schulz iteration gives K^1/2 and K^-1/2 (Higham 2008, Functions of Matrices, section 6.7), scaled
at each step for the smallest value that may remain (Chen & Chow 2014): a weak direction then grows 2.6-fold a step
instead of 1.5-fold. Half powers are these results or their own square roots. Any other gain is its Chebyshev
interpolant in K^1/4, in which four decades of x become one.

Resolution: floating-point products leave a Gram matrix uncertain by some 16 eps |K|, and an eigenvalue that
rounding made negative would diverge, so that much is added to every eigenvalue. Gains therefore act on (x^2 + 16
eps x_1^2)^1/2. Directions below 1e-3 x_1 in float32, or 6e-8 x_1 in float64, are not told apart, and their gain
goes to 0 with them. With TF32 or bfloat16 products (`torch.set_float32_matmul_precision`), eps is that of the
reduced format.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rankgap.spectra.float64 import double

DEGREE = 32  # of the Chebyshev interpolant

_NOISE = 16  # what rounding leaves in a Gram matrix, in units of eps times its norm
_REDUCED = {"high": 2.0**-11, "medium": 2.0**-8}  # eps of the products that a user may allow in float32


def product_eps(dtype: torch.dtype) -> float:
    """The rounding error of a matrix product: eps of the dtype, or of the format allowed in place of float32."""
    allowed = torch.get_float32_matmul_precision()
    return _REDUCED.get(allowed, torch.finfo(dtype).eps) if dtype == torch.float32 else torch.finfo(dtype).eps


def square_roots(k: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """K^1/2 and K^-1/2 of a symmetric matrix, by 3 products a step: 11 steps in float32, 18 in float64.

    Args:
        k: (..., R, R), with eigenvalues in [floor^2, 1].
        floor: the smallest square root of an eigenvalue; it sets the number of steps.
    """
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device).expand_as(k)
    root, inverse = k, identity
    low, last = floor, torch.finfo(k.dtype).eps
    while 1 - low > last:
        # x <- a x (3 - a^2 x^2) / 2 has the same value at `low` and at 1, and at most 1 between.
        a = math.sqrt(3 / (1 + low + low**2))
        step = 1.5 * a * identity - 0.5 * a**3 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
        low = min(0.5 * a * low * (3 - a**2 * low**2), 1.0)
    return root, inverse


def _interpolated(gain: Callable[[Tensor], Tensor], w: Tensor, low: float, top: Tensor) -> Tensor:
    """sum_k c_k T_k of a matrix W with eigenvalues in [low, 1], equal to gain(top w^2) at Chebyshev's nodes.

    Clenshaw's recurrence takes one product a degree.
    """
    count, top = DEGREE + 1, double(top)
    angles = math.pi * (torch.arange(count, dtype=torch.float64, device=top.device) + 0.5) / count
    nodes = low + (1 - low) * (angles.cos() + 1) / 2
    values = gain(top * nodes.square())  # (..., count)
    orders = torch.arange(count, dtype=torch.float64, device=top.device)
    coefficients = 2 / count * values @ torch.outer(angles, orders).cos()  # (..., count)
    c = coefficients.to(w)[..., None, None].unbind(-3)
    identity = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    t = (2 * w - (1 + low) * identity) / (1 - low)
    ahead, now = torch.zeros_like(w), c[-1] * identity
    for c_k in reversed(c[1:-1]):
        now, ahead = 2 * t @ now - ahead + c_k * identity, now
    return t @ now - ahead + c[0] / 2 * identity


def gain_by_products(
    k: Tensor, gain: Callable[[Tensor], Tensor], power: float | None = None
) -> tuple[Tensor, Tensor]:
    """U diag(g(x)) U^T and U diag(1 / x) U^T of K = U diag(x^2) U^T.

    Error of the filtered batch relative to the definition, in the Frobenius norm at condition 50 (tests hold it):
    in float32, 2e-5 for gains that rise and 1e-3 for gains that fall; in float64, 1e-8 for half powers and 3e-5
    for other powers, `log1p` and `log1p2`. `log` has a kink and errs by 1e-2. A gradient, in which the weakest
    direction counts as much as any other, errs by at most 1e-2 in float32.

    Args:
        k: (..., R, R), symmetric; float32 or float64.
        gain: g, elementwise.
        power: p where g(x) = x^p, else None.

    Returns:
        Both (..., R, R), in the dtype of `k`.
    """
    trace = k.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    trace = torch.where(trace > 0, trace, 1.0)  # an all-zero batch stays all-zero
    k = k / trace
    norm = (k @ k).square().sum((-2, -1), keepdim=True) ** 0.25  # at least l_1, at most R^1/4 times as much
    norm = torch.where(norm > 0, norm, 1.0)
    noise = _NOISE * product_eps(k.dtype)
    floor = math.sqrt(noise / (1 + noise))
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    root, inverse = square_roots((k / norm + noise * identity) / (1 + noise), floor)
    # The share of noise in an eigenvalue is 1 in the null space and nearly 0 elsewhere; its square falls off
    # faster.
    null = floor**2 * (inverse @ inverse)
    kept = identity - null @ null
    for _ in range(2):
        kept = kept @ kept @ (3 * identity - 2 * kept)  # smoothstep sends values near 0 and near 1 there
    top = (trace * norm * (1 + noise)).sqrt()  # the x that is 1 in the scaled matrix
    return _gain_of(root, inverse, floor, top, gain, power) @ kept, inverse @ kept / top


def _gain_of(
    root: Tensor,
    inverse: Tensor,
    floor: float,
    top: Tensor,
    gain: Callable[[Tensor], Tensor],
    power: float | None,
) -> Tensor:
    """The gain from both square roots of the scaled matrix; `top` (..., 1, 1) is the x that is 1 in it."""
    if power == 0:
        return torch.eye(root.shape[-1]).to(root).expand_as(root)
    if power == 1:
        return root * top
    if power == -1:
        return inverse * top**-1
    quarter, inverse_quarter = square_roots(root, math.sqrt(floor))
    if power == 0.5:
        return quarter * top**0.5
    if power == -0.5:
        return inverse_quarter * top**-0.5
    # A polynomial cannot follow a pole, so whole powers of K^-1/2 are taken out of the gain first.
    poles = 0 if power is None else max(math.ceil(-power), 0)
    smooth = _interpolated(lambda x: gain(x) * x**poles, quarter, math.sqrt(floor), top[..., 0, 0, None])
    for _ in range(poles):
        smooth = smooth @ (inverse / top)
    return smooth
