"""A spectral filter whose gain is trained with the encoder.

Shapes: N rows of a view, D columns, `...` leading batch dimensions (views).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.filters.gains import Gain, Scale
from rankgap.filters.spectral import Solver, spectral_filter

_PACE = 10.0  # scales the parameters, because an encoder's learning rate alone would hardly move the gain


class MonotoneGain(nn.Module):
    """g(x) = sum_k softplus(10 a_k) x / (x + c_k), c_k = 0.001, 0.01, ..., 100: non-decreasing for every a.

    Each term is linear far below c_k and constant far above it, so g is concave and nowhere steeper than power:1.
    It starts near power:0.5, which is such a sum: x^1/2 = (1 / pi) int sqrt(c) x / (x + c) dln c, here with steps
    of ln 10, within 12% for 0.01 <= x <= 10.

    The a_k form one vector, so weight decay applies to them only in a recipe that decays every parameter.
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        centres = torch.logspace(-3, 2, 6)
        weights = math.log(10) / math.pi * centres.sqrt()
        self.raw = nn.Parameter(weights.expm1().log() / _PACE)  # softplus gives the weights back
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """g(x), elementwise, in the dtype of `x` and on its device."""
        x = x.unsqueeze(-1)
        gain: Tensor = x / (x + self.centres.to(x)) @ F.softplus(_PACE * self.raw).to(x)
        return gain


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedOptions:
    """The options of a `LearnedFilter`; every field is an argument of the same name.

    Args:
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: "auto", "gram", "svd" or "iterative", see `spectral_filter`.
    """

    scale: Scale = "rms"
    solver: Solver = "auto"


class LearnedFilter(nn.Module):
    """A low-pass filter of each batch whose gain is trained with the encoder: (..., N, D) -> (..., N, D).

    P = Z W with W = V diag(g(x)) V^T, as `spectral_filter` on the online branch. The gradient reaches Z with
    W held constant, and the six parameters of g with V and x held constant. Null directions have gain 0.

    Args:
        scale: what the gain acts on: "rms", s / sqrt(N), or "raw", s.
        solver: "auto", "gram", "svd" or "iterative", see `spectral_filter`.
    """

    def __init__(self, scale: Scale = "rms", *, solver: Solver = "auto") -> None:
        super().__init__()
        self.gain, self.scale, self.solver = MonotoneGain(), scale, solver

    def forward(self, z: Tensor) -> Tensor:
        """Filter a batch, each leading dimension (view) on its own.

        Raises:
            UserError, NonFiniteError, RuntimeError: as `spectral_filter`.
        """
        gain = Gain("learned", self.gain, is_low_pass=True, is_high_pass=False)
        return spectral_filter(z, gain, scale=self.scale, solver=self.solver)
