"""A linear map that is computed from a running correlation.

Shapes: N rows, D columns, `...` leading batch dimensions (views).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.filters.gains import Scale
from rankgap.spectra.float64 import KeepsFloat64, double
from rankgap.spectra.processes import world_sum


class RunningMap(KeepsFloat64):
    """A map W computed from a running correlation C = E[z z^T] over views, processes and steps.

    C is the weighted mean of the batches' correlations, with weights 1, m, m^2, ... from the newest back, divided
    by their sum. The first batch therefore starts the mean and weighs no more than any other; without the
    division, m = 0.998 would remember it for hundreds of steps.

    Args:
        solve: the function that computes W (D, D) from C (D, D) float64.
        dim: D.
        scale: "rms" passes C to `solve`; "raw" passes N C, where N is the number of rows in one view.
        momentum: m.
        every: training steps from one computation of W to the next.

    Raises:
        UserError: the momentum is outside [0, 1), or `every` is below 1.
    """

    correlation: Tensor
    held: Tensor

    def __init__(
        self, solve: Callable[[Tensor], Tensor], dim: int, *, momentum: float, every: int, scale: Scale = "rms"
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or every < 1:
            raise UserError(f"expected 0 <= momentum < 1 and every >= 1, not {momentum:g} and {every}")
        self.solve, self.scale = solve, scale
        self.momentum, self.every, self.seen = momentum, every, 0
        self.register_buffer("correlation", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("held", torch.zeros(dim, dim))

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """The last W (D, D) float32; in training mode the batch (..., N, D) is added to C first.

        Raises:
            UserError: no batch was seen in training mode yet.
        """
        if self.training:
            rows = double(z.flatten(0, -2))
            count = world_sum(rows.new_tensor(len(rows)))
            now = world_sum(rows.mT @ rows) / count
            self.correlation.lerp_(now, (1 - self.momentum) / (1 - self.momentum ** (self.seen + 1)))
            if self.seen % self.every == 0:
                n = 1 if self.scale == "rms" else count / math.prod(z.shape[:-2])
                self.held.copy_(self.solve(n * self.correlation))
            self.seen += 1
        if self.seen == 0:
            raise UserError("a running correlation has no spectrum before its first batch; train for a step first")
        return self.held

    def get_extra_state(self) -> int:
        """The number of training steps seen, so that a resumed run continues from it."""
        return self.seen

    def set_extra_state(self, state: int) -> None:
        """Restore the number of training steps seen."""
        self.seen = state
