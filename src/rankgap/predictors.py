"""Linear predictors that no gradient trains, and a spectral filter whose gain one does.

A closed-form predictor is set from what comes before it: C = E[z z^T] = V diag(l) V^T, averaged over views, ranks
and steps, gives W = (C / l_1)^alpha + eps I and P = Z W, W held constant. Every published one is a row of
`CLOSED_FORMS`. Unlike a filter's gain, eps also acts where C has nothing: the null rule of `filters` holds for
(l / l_1)^alpha alone.

Shapes: N rows of a view, D columns, `...` leading batch dimensions (views).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.filters import RunningMap, Scale, Solver, spectral_filter
from rankgap.gains import Gain
from rankgap.spectra import check_batch, eigenbasis, rank_tolerance, solve_gram

_LANCZOS_STEPS = 32
_PACE = 10.0  # of a learned gain: it multiplies gradient and step; without it an encoder's rate hardly moves one


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedForm:
    """W = (C / l_1)^alpha + eps I, a row of `CLOSED_FORMS`; called with C (D, D), it gives W.

    Args:
        alpha: above 0; 1 to 4, whole, take products alone, others a decomposition.
        eps: at or above 0, relative to the strongest direction's gain of 1.
        momentum: of C, see `filters.RunningMap`.
        straight: the gradient passes as if W were 1: dL/dZ = dL/dP (IsoLoss).

    Raises:
        UserError: alpha or eps is none.
    """

    alpha: float
    eps: float
    momentum: float
    straight: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not (0 < self.alpha < math.inf and 0 <= self.eps < math.inf):
            raise UserError(f"expected finite alpha > 0 and eps >= 0, not {self.alpha:g} and {self.eps:g}")

    def __call__(self, correlation: Tensor) -> Tensor:
        """W (D, D) of C (D, D), float64; eps I for a C that is 0.

        Raises:
            NonFiniteError, RuntimeError: as `spectra.solve_gram`.
        """
        identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
        if self.alpha in (1, 2, 3, 4):
            top = largest_eigenvalue(correlation)
            relative = correlation / torch.where(top > 0, top, 1.0)
            power: Tensor = torch.linalg.matrix_power(relative, int(self.alpha))
            return power + self.eps * identity
        tolerance = rank_tolerance(len(correlation), len(correlation), torch.float32)
        x, v, keep = eigenbasis(correlation, tolerance, "closed-form predictor")
        gain = torch.where(keep, (x / x[0]) ** (2 * self.alpha), 0.0)  # a dead C keeps nothing
        return v * gain @ v.mT + self.eps * identity


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """The largest eigenvalue of a positive semi-definite matrix (D, D), 0-d, from below.

    32 steps of Lanczos from a fixed vector, a product of matrix and vector each: exact where the first stands
    apart, at most 1% too small where many are close to it (tests hold it).

    Raises:
        NonFiniteError, RuntimeError: as `spectra.solve_gram`.
    """
    start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = matrix.new_zeros(min(_LANCZOS_STEPS, len(matrix)), len(matrix))
    ahead = start.to(matrix)
    for i in range(len(basis)):
        ahead = ahead - (basis[:i] @ ahead) @ basis[:i]
        basis[i] = ahead / ahead.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
        ahead = matrix @ basis[i]
    q = torch.linalg.qr(basis.mT).Q  # where nothing new was left, rows above are rounding, and not orthogonal
    eigenvalues: Tensor = solve_gram(torch.linalg.eigvalsh, q.mT @ matrix @ q, "closed-form predictor")
    return eigenvalues[-1]


# directpred: Tian, Chen & Ganguli 2021, normalised as in their code, sqrt(l / l_1) + eps (the paper writes
#   sqrt(l) + eps l_1, which is another predictor at another scale of Z); rho and eps are the paper's.
# directcopy: the code of Halvagal, Laborieux & Zenke 2023. The code of Wang et al. (2021), whose idea it is, adds
#   eps to a C that is not normalised.
# isoloss: Halvagal et al., likewise: no eps, and gradients straight through. Their C moves once a view, ours once
#   a step by all views.
CLOSED_FORMS: dict[str, ClosedForm] = {
    "directpred": ClosedForm(alpha=0.5, eps=0.1, momentum=0.3),
    "directcopy": ClosedForm(alpha=1, eps=0.25, momentum=0.998),
    "isoloss": ClosedForm(alpha=0.5, eps=0.0, momentum=0.998, straight=True),
}


def closed_form(name: str) -> ClosedForm | None:
    """The closed form of a name: one of `CLOSED_FORMS`, or `directset:alpha`; None for any other.

    DirectSet(alpha) is that of Wang, Chen, Du & Tian (2021): directpred with its power left open, here also with
    directpred's eps and momentum.

    Raises:
        UserError: `directset` without a power that is a finite number above 0.
    """
    head, _, power = name.partition(":")
    if head != "directset":
        return CLOSED_FORMS.get(name)
    try:
        alpha = float(power)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise UserError(f"{name!r}: expected directset:alpha with a finite number above 0, such as directset:2")
    return ClosedForm(alpha=alpha, eps=0.1, momentum=0.3)


class ClosedFormPredictor(nn.Module):
    """P = Z W with W from a running correlation: (..., N, D) -> (..., N, D), no parameters.

    W follows the batch it acts on and all before it, and is set anew at every training step, as published (Tian et
    al. set it after the step instead); never in evaluation.

    Args:
        form: W of a correlation.
        dim: D.
        momentum: in place of the form's own.

    Raises:
        UserError: a momentum outside [0, 1).
    """

    def __init__(self, form: ClosedForm, dim: int, *, momentum: float | None = None) -> None:
        super().__init__()
        self.form = form
        self.running = RunningMap(form, dim, momentum=form.momentum if momentum is None else momentum, every=1)

    def forward(self, z: Tensor) -> Tensor:
        """Follow a batch in training mode, and predict; float32, or float64 for a float64 input.

        Raises:
            UserError: not a (..., N, D) of numbers, or no batch was seen in training mode yet.
            NonFiniteError, RuntimeError: as `spectra.solve_gram`.
        """
        check_batch(z, "a closed-form predictor")
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            held: Tensor = self.running(z.detach())
            p = z @ held.to(z.dtype)
            return p.detach() + (z - z.detach()) if self.form.straight else p

    def extra_repr(self) -> str:
        """The form."""
        return f"{self.form}"


class MonotoneGain(nn.Module):
    """g(x) = sum_k softplus(10 a_k) x / (x + c_k), c_k = 0.001, 0.01, ..., 100: non-decreasing, whatever a is.

    Far below c_k a term is linear, far above it is constant, so that g is concave and rises nowhere faster than
    power:1. It begins near power:0.5, which is such a sum, x^1/2 = (1 / pi) int sqrt(c) x / (x + c) dln c, here
    with a step of ln 10: within 12% for 0.01 <= x <= 10.

    The a_k are one vector, so that weight decay leaves them alone but where a recipe decays everything.
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        centres = torch.logspace(-3, 2, 6)
        weights = math.log(10) / math.pi * centres.sqrt()
        self.raw = nn.Parameter(weights.expm1().log() / _PACE)  # softplus gives the weights back
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """g(x), elementwise, in the dtype of `x`."""
        x = x.unsqueeze(-1)
        gain: Tensor = x / (x + self.centres.to(x.dtype)) @ F.softplus(_PACE * self.raw).to(x.dtype)
        return gain


class LearnedFilter(nn.Module):
    """A low-pass filter of each batch whose gain is trained with the encoder: (..., N, D) -> (..., N, D).

    P = Z W, W = V diag(g(x)) V^T, as `spectral_filter` on the online branch: the gradient reaches Z through W held
    constant, and the six parameters of g through g alone, V and x held constant. Null directions have gain 0.

    Args:
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: see `spectral_filter`.
    """

    def __init__(self, scale: Scale = "rms", *, solver: Solver = "auto") -> None:
        super().__init__()
        self.gain, self.scale, self.solver = MonotoneGain(), scale, solver

    def forward(self, z: Tensor) -> Tensor:
        """Filter a batch, each leading dimension (view) alone.

        Raises:
            UserError, NonFiniteError, RuntimeError: as `spectral_filter`.
        """
        gain = Gain("learned", self.gain, is_low_pass=True, is_high_pass=False)
        return spectral_filter(z, gain, scale=self.scale, solver=self.solver)
