"""The gradient flow of the linear model, for every published method that is linear.

The model is that of Tian, Chen & Ganguli (2021): a linear encoder W, two views x1, x2 of an image with
X = E[x1 x2^T] (what views share) and A = E[x x^T] = X + X' (X' is what augmentation adds), P = Wp W x1 and
T = Wh Wa x2. Wp and Wh are the maps of the two branches; Wa is W, or follows it as an EMA.

    squared  J = E|P - T|^2 / 2                                  (theirs)
    cosine   J = -E[P . T] / sqrt(E|P|^2 E|T|^2)                 (one norm per batch; training has one per row)

With T constant, and two numbers a, b (both 1 for the squared loss; for the cosine
a = 1 / sqrt(E|P|^2 E|T|^2), b = -J / E|P|^2):

    E = a Wh Wa X - b Wp W A,   dW/dt = Wp^T E - eta W,   dWp/dt = alpha E W^T - eta Wp,   dWa/dt = beta (W - Wa)

The model leaves out depth, non-linear maps (so Sinkhorn and softmax have no row here), batches, momentum and batch
norm. Means are taken as zero, so centring (SymSimSiam) changes nothing.

Shapes: R directions; D outputs, d inputs, T times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import DOP853
from torch import Tensor

from rankgap.errors import NonFiniteError, UserError, unknown
from rankgap.filters.gains import Gain, parse_gain
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.gram import above_noise, rank_tolerance, solve_gram

Predictor = Literal["filter", "fixed", "learned"]
Loss = Literal["cosine", "squared"]

_MOST_CALLS = 20_000  # of the flow's right-hand side, which take some seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A method in the linear model, as one row of a table.

    Args:
        online: the gain of Wp; None for no map (Wp = 1).
        predictor: how Wp moves. "filter": Wp = V g V^T follows the spectrum of the encoder's output and is held
            constant in the gradient, as in `SpectralFilter`. "fixed": Wp stays as it was at time 0. "learned": Wp
            starts there and follows its own gradient.
        rate: alpha, the learned predictor's rate relative to the encoder's.
        target: the gain of Wh, on the target's own spectrum; None for no map (Wh = 1).
        ema: beta, the rate at which Wa follows W; None if Wa is W.
        stop_gradient: whether T is held constant in the gradient.
        weight_decay: eta.
        loss: "cosine" or "squared".

    Raises:
        UserError: the predictor or the loss is unknown, a rate is negative or not finite, or there is no
            stop-gradient although the branches differ. The model has no stop-gradient only if both branches are
            alike; their gradients then add up to twice one of them.
    """

    online: str | Gain | None = None
    predictor: Predictor = "filter"
    rate: float = 1.0
    target: str | Gain | None = None
    ema: float | None = None
    stop_gradient: bool = True
    weight_decay: float = 0.0
    loss: Loss = "cosine"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.predictor not in get_args(Predictor):
            raise unknown("predictor", self.predictor, get_args(Predictor))
        if self.loss not in get_args(Loss):
            raise unknown("loss", self.loss, get_args(Loss))
        for name, value in (("rate", self.rate), ("ema", self.ema), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"expected {name} to be a finite number at or above 0, got {value}")
        alike = (self.online, self.target, self.ema) == (None, None, None) and self.predictor == "filter"
        if not (self.stop_gradient or alike):
            raise UserError(
                "a flow without stop-gradient needs two equal branches: leave online, target and ema at None, and "
                "predictor at 'filter'"
            )


# The rows of the table, and the effect of each on the online rank (tests hold it). "Flat" means that views share
# the same part of every direction (X = rho A with one number rho). Otherwise rho is larger in strong directions,
# which the loss alone favours.
FLOWS: Mapping[str, Flow] = MappingProxyType(
    {
        "symsimsiam": Flow(stop_gradient=False),  # flat: constant; otherwise falls towards 1
        "stop_gradient": Flow(),  # the same at half the pace
        "ema_target": Flow(ema=0.1),  # the same, more slowly still
        "fixed_predictor": Flow(online="power:1", predictor="fixed"),  # grows, overshoots, then falls
        "learned_predictor": Flow(online="power:1", predictor="learned"),  # grows; in balance it is power:1
        "tian2021": Flow(online="power:1", predictor="learned", ema=1.0, weight_decay=0.01, loss="squared"),
        "low_pass_online": Flow(online="power:0.5"),  # flat: grows to R; otherwise until g is as steep as rho
        "high_pass_target": Flow(target="power:-0.5"),  # as low_pass_online
        "weight_decay": Flow(online="power:0.5", weight_decay=0.002),  # the same path, ever faster: |W| shrinks
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class FlowResult:
    """A row of the linear model over time.

    Args:
        times: (T,); fewer than were asked for if the flow ended early.
        online: singular values of P over sqrt(N) at each time (T, R), descending.
        target: singular values of T over sqrt(N) at each time (T, R), descending.
        erank_online: effective rank of P, of the correlation (T,).
        erank_target: effective rank of T, of the correlation (T,).
        encoder: W (T, R) or (T, D, d).
        predictor: Wp (T, R) or (T, D, D).
    """

    times: Tensor
    online: Tensor
    target: Tensor
    erank_online: Tensor
    erank_target: Tensor
    encoder: Tensor
    predictor: Tensor


def linear_flow(
    row: str | Flow,
    encoder: Tensor,
    signal: Tensor,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    predictor: Tensor | None = None,
    partial: bool = False,
) -> FlowResult:
    """Integrate a row's gradient flow, in the shared eigenspace (vectors) or in full (matrices).

    In the shared eigenspace W, Wp, X and X' are diagonal, remain so, and are given as their diagonals. Under the
    cosine loss time scales with |W|^2, which weight decay changes and the flow itself does not.

    Args:
        row: a `Flow`, or a name in `FLOWS`.
        encoder: W at time 0, (R,) or (D, d).
        signal: X, (R,) or symmetric (d, d).
        noise: X', (R,) or symmetric (d, d).
        times: increasing, from 0.
        predictor: Wp at time 0 if it is fixed or learned, (R,) or (D, D); the row's gain by default.
        partial: if the flow diverges, or directions die out in finite time (as under a high-pass online), return
            the times before that instead of raising.

    Returns:
        Spectra and effective ranks at those times, float64.

    Raises:
        UserError: the row is unknown, the shapes do not fit, or the times do not increase from 0.
        NonFiniteError: the flow diverges, or needs more than 20,000 evaluations.

    Example:
        >>> found = linear_flow(FLOWS["low_pass_online"], torch.tensor([2.0, 1.0]), torch.ones(2), torch.zeros(2),
        ...                     [0.0, 100.0])
        >>> [round(float(r), 2) for r in found.erank_online]
        [1.42, 2.0]
    """
    if isinstance(row, str):
        if row not in FLOWS:
            raise unknown("flow", row, FLOWS)
        row = FLOWS[row]
    w, x, a, at = _checked(encoder, signal, noise, times)
    held = row.predictor != "filter"
    square = w.shape[:1] * w.ndim
    if predictor is not None and (not held or predictor.shape != square):
        raise UserError(
            f"expected a predictor of shape {tuple(square)}, for a row whose predictor is 'fixed' or 'learned'; "
            f"got shape {tuple(predictor.shape)} for {row.predictor!r}"
        )
    state = [w]
    if held:
        state.append(_map(row.online, w, a) if predictor is None else predictor.double())
    if row.ema is not None:
        state.append(w)
    shapes = [part.shape for part in state]
    sizes = [part.numel() for part in state]

    def parts(y: NDArray[np.float64]) -> list[Tensor]:
        split = torch.from_numpy(y).split(sizes)
        return [part.view(shape) for part, shape in zip(split, shapes, strict=True)]

    def velocity(_: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = torch.cat([part.flatten() for part in _velocity(row, parts(y), x, a)]).numpy()
        return rates

    start = torch.cat([part.flatten() for part in state]).numpy()
    along = [parts(y) for y in _integrated(velocity, start, at.tolist(), partial=partial)]
    seen = [_branches(row, each, a) for each in along]
    online, target = (torch.stack([_spectrum(each[i], a) for each in seen]) for i in (1, 2))
    return FlowResult(
        times=at[: len(along)],
        online=online,
        target=target,
        erank_online=effective_rank_of(online),
        erank_target=effective_rank_of(target),
        encoder=torch.stack([each[0] for each in along]),
        predictor=torch.stack([each[0] for each in seen]),
    )


def _integrated(
    velocity: Callable[[float, NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    times: list[float],
    *,
    partial: bool,
) -> list[NDArray[np.float64]]:
    """The states at the times, `start` at the first; fewer if the flow ends early and `partial` allows it."""
    solver = DOP853(velocity, 0.0, start, times[-1], rtol=1e-9, atol=1e-12 * float(np.abs(start).max()))
    solved = [start]
    while len(solved) < len(times):
        if solver.step() is not None or solver.nfev > _MOST_CALLS:
            if partial and len(solved) > 1:
                break
            raise NonFiniteError(
                f"the linear flow diverges or becomes too stiff at t = {solver.t:.4g}; end it earlier, or pass "
                "partial=True"
            )
        between = solver.dense_output()
        solved += [between(time) for time in times[len(solved) :] if time <= solver.t]
    return solved


def _checked(
    encoder: Tensor, signal: Tensor, noise: Tensor, times: Tensor | Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W, X, A and the times, in float64."""
    inputs = encoder.shape[-1:] * encoder.ndim
    if encoder.ndim not in (1, 2) or not encoder.numel() or signal.shape != inputs or noise.shape != inputs:
        raise UserError(
            "expected encoder, signal and noise of shapes (R,), (R,), (R,), or (D, d), (d, d), (d, d); "
            f"got {', '.join(str(tuple(part.shape)) for part in (encoder, signal, noise))}"
        )
    w, x, n, at = (torch.as_tensor(part, dtype=torch.float64) for part in (encoder, signal, noise, times))
    if not all(part.isfinite().all() for part in (w, x, n)) or not w.any():
        raise UserError("expected finite encoder, signal and noise, and an encoder that is not all 0")
    if at.ndim != 1 or len(at) < 2 or at[0] != 0 or not (at.diff() > 0).all() or not at.isfinite().all():
        raise UserError(f"expected two or more times that increase from 0, got {at.flatten().tolist()[:5]}")
    return w, x, x + n, at


# In the shared eigenspace a vector stands for a diagonal matrix: its product is *, and it is its own transpose.
# sum((P A) * P) is tr(P A P^T) in both cases.


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return left * right if left.ndim == 1 else left @ right


def _transposed(matrix: Tensor) -> Tensor:
    return matrix if matrix.ndim == 1 else matrix.mT


def _map(gain: str | Gain | None, w: Tensor, a: Tensor) -> Tensor:
    """V g V^T from the correlation W A W^T = V x^2 V^T, with gain 0 in its null space; the identity for None."""
    if gain is None:
        return torch.ones_like(w) if w.ndim == 1 else torch.eye(len(w), dtype=w.dtype)
    gain = parse_gain(gain) if isinstance(gain, str) else gain
    correlation = _dot(_dot(w, a), _transposed(w))
    if w.ndim == 1:
        values, vectors = correlation, torch.empty(0)
    else:
        values, vectors = solve_gram(torch.linalg.eigh, correlation, "linear flow")
    s = values.clamp_min(0).sqrt()
    keep = s > rank_tolerance(len(w), len(w), torch.float64) * s.max()
    g = gain.on(s, keep)
    return g if w.ndim == 1 else vectors * g @ vectors.mT


def _branches(row: Flow, state: list[Tensor], a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Wp, Wp W and Wh Wa."""
    w = state[0]
    wp = _map(row.online, w, a) if row.predictor == "filter" else state[1]
    wa = w if row.ema is None else state[-1]
    return wp, _dot(wp, w), _dot(_map(row.target, wa, a), wa)


def _velocity(row: Flow, state: list[Tensor], x: Tensor, a: Tensor) -> list[Tensor]:
    """d/dt of W, of Wp if it is fixed or learned, and of Wa if it is an EMA (see the module's docstring)."""
    wp, p, t = _branches(row, state, a)
    pull = push = 1.0
    if row.loss == "cosine":
        energy_p, energy_t = float((_dot(p, a) * p).sum()), float((_dot(t, a) * t).sum())
        agreement = float((_dot(p, x) * t).sum())
        pull = (energy_p * energy_t) ** -0.5
        push = agreement * pull / energy_p
    error = pull * _dot(t, x) - push * _dot(p, a)
    w = state[0]
    moved = [_dot(_transposed(wp), error) * (1.0 if row.stop_gradient else 2.0) - row.weight_decay * w]
    if row.predictor == "fixed":
        moved.append(torch.zeros_like(wp))
    if row.predictor == "learned":
        moved.append(row.rate * _dot(error, _transposed(w)) - row.weight_decay * wp)
    if row.ema is not None:
        moved.append(row.ema * (w - state[-1]))
    return moved


def _spectrum(p: Tensor, a: Tensor) -> Tensor:
    """Singular values of P over sqrt(N), descending."""
    correlation = _dot(_dot(p, a), _transposed(p))
    values = correlation if p.ndim == 1 else solve_gram(torch.linalg.eigvalsh, correlation, "linear flow")
    return above_noise(values.sort(descending=True).values).sqrt()
