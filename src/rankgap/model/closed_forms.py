"""Linear predictors that are computed, not trained.

A closed-form predictor is computed from its inputs: C = E[z z^T] = V diag(l) V^T, averaged over views, processes
and steps, gives W = (C / l_1)^alpha + eps I and P = Z W, with W held constant. Every published one is a row of
`CLOSED_FORMS`. Unlike a filter's gain, eps also acts in the null space of C: the null rule of `filters` applies to
(l / l_1)^alpha alone.

Shapes: N rows of a view, D columns, `...` leading batch dimensions (views).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.filters.running import RunningMap
from rankgap.model.maps import Place, register_map
from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.gram import check_batch, eigenbasis, rank_tolerance, solve_gram

_LANCZOS_STEPS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedForm:
    """W = (C / l_1)^alpha + eps I, a row of `CLOSED_FORMS`; called with C (D, D), it returns W.

    Args:
        alpha: the power, above 0; 1, 2, 3 and 4 take only products, others a decomposition.
        eps: the constant added to each gain, at least 0 and relative to the strongest direction's gain of 1.
        momentum: momentum of C, see `filters.RunningMap`.
        straight: the gradient passes as if W were the identity: dL/dZ = dL/dP (IsoLoss).

    Raises:
        UserError: alpha is not finite and above 0, or eps is not finite and at least 0.
    """

    alpha: float
    eps: float
    momentum: float
    straight: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and 0 <= self.eps < math.inf):
            raise UserError(f"expected finite alpha > 0 and eps >= 0, got {self.alpha:g} and {self.eps:g}")

    def __call__(self, correlation: Tensor) -> Tensor:
        """W (D, D) from C (D, D), float64; eps I if C is 0.

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
        gain = torch.where(keep, (x / x[0]) ** (2 * self.alpha), 0.0)  # an all-zero C keeps nothing
        return v * gain @ v.mT + self.eps * identity


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """The largest eigenvalue of a positive semi-definite matrix (D, D), 0-d, approached from below.

    This takes 32 Lanczos steps from a fixed vector, one matrix-vector product each. It is exact where the largest
    eigenvalue stands apart, and at most 1% too small where many are close to it (a test checks this).

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
    q = torch.linalg.qr(basis.mT).Q  # once nothing new is left, the rows are rounding and not orthogonal
    eigenvalues: Tensor = solve_gram(torch.linalg.eigvalsh, q.mT @ matrix @ q, "closed-form predictor")
    return eigenvalues[-1]


# directpred: Tian, Chen & Ganguli 2021, normalised as in their code, sqrt(l / l_1) + eps (the paper writes
#   sqrt(l) + eps l_1, which is another predictor at another scale of Z); rho and eps = 0.1 are the paper's. The
#   command that the authors publish beside their code has eps = 0.01: online.directpred.eps=0.01.
# directcopy: as in the code of Halvagal, Laborieux & Zenke 2023. The code of Wang et al. (2021), who had the idea,
#   adds eps to a C that is not normalised.
# isoloss: Halvagal et al. too: no eps, and gradients pass straight through. Their C moves once per view, ours
#   once per step from all views.
CLOSED_FORMS: dict[str, ClosedForm] = {
    "directpred": ClosedForm(alpha=0.5, eps=0.1, momentum=0.3),
    "directcopy": ClosedForm(alpha=1, eps=0.25, momentum=0.998),
    "isoloss": ClosedForm(alpha=0.5, eps=0.0, momentum=0.998, straight=True),
}


class ClosedFormPredictor(nn.Module):
    """P = Z W with W from a running correlation: (..., N, D) -> (..., N, D), without parameters.

    W follows the batch it acts on and all earlier ones. It is computed again at every training step, as published
    (Tian et al. do so after the step instead), and never in evaluation.

    Args:
        place: where the map stands.
        form: how W follows from a correlation.

    Raises:
        UserError: a momentum outside [0, 1).
    """

    def __init__(self, place: Place, form: ClosedForm) -> None:
        super().__init__()
        self.form = form
        self.running = RunningMap(form, place.dim, momentum=form.momentum, every=1)

    def forward(self, z: Tensor) -> Tensor:
        """Update W in training mode, and predict; float32, or float64 for a float64 input.

        Raises:
            UserError: `z` is not a floating-point (..., N, D), or W has not seen a batch in training mode yet.
            NonFiniteError, RuntimeError: as `spectra.solve_gram`.
        """
        check_batch(z, "a closed-form predictor")
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            held: Tensor = self.running(z.detach())
            p = z @ held.to(z.dtype)
            return p.detach() + (z - z.detach()) if self.form.straight else p

    def extra_repr(self) -> str:
        """The form."""
        return f"{self.form}"


def _with_power(form: ClosedForm, text: str) -> ClosedForm:
    """The form with the power that the user wrote after its name."""
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise UserError("expected directset:alpha with a finite number above 0, such as directset:2")
    if form.alpha not in (CLOSED_FORMS["directpred"].alpha, alpha):
        raise UserError(f"its power is the number after the name, so alpha={form.alpha:g} cannot be set as well")
    return replace(form, alpha=alpha)


for _name, _form in CLOSED_FORMS.items():
    register_map(_name, "online", options=_form, predicts=True)(ClosedFormPredictor)
# DirectSet(alpha) of Wang, Chen, Du & Tian (2021): directpred with a free power, as in directset:2.
register_map(
    "directset",
    "online",
    options=CLOSED_FORMS["directpred"],
    predicts=True,
    argument="alpha",
    configure=_with_power,
)(ClosedFormPredictor)
