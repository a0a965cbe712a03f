"""The linear model's gradient flow, for every row of the table that is linear.

The model is Tian, Chen & Ganguli's (2021): a linear encoder W, two views x1, x2 of an image with
X = E[x1 x2^T] (what views share) and A = E[x x^T] = X + X' (X' is what augmentation adds), P = Wp W x1 and
T = Wh Wa x2. Wp and Wh are what stands on the two branches, Wa is W or follows it as an EMA.

    squared  J = E|P - T|^2 / 2                                  (theirs)
    cosine   J = -E[P . T] / sqrt(E|P|^2 E|T|^2)                 (one norm a batch; training has one a row)

and with T constant, for two numbers a, b (both 1 for the squared loss; for the cosine
a = 1 / sqrt(E|P|^2 E|T|^2), b = -J / E|P|^2):

    E = a Wh Wa X - b Wp W A,   dW/dt = Wp^T E - eta W,   dWp/dt = alpha E W^T - eta Wp,   dWa/dt = beta (W - Wa)

What it leaves out: depth, non-linear maps (Sinkhorn and softmax have no row here), batches, momentum, batch norm.
Means are taken as zero, so that centring (SymSimSiam) changes nothing.

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

_MOST_CALLS = 20_000  # of the right-hand side of the flow: some seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A row of the linear model, as `methods.Method` is one of the zoo.

    Args:
        online: the gain of Wp; None: no map (Wp = 1).
        predictor: "filter": Wp = V g V^T follows the spectrum of the encoder's output, held constant in the
            gradient, as `SpectralFilter` does; "fixed": it stays as it was at time 0; "learned": it starts there
            and follows its own gradient.
        rate: alpha, the learned predictor's rate relative to the encoder's.
        target: the gain of Wh, of the target's own spectrum.
        ema: beta, the rate at which Wa follows W; None: Wa is W.
        stop_gradient: T is a constant.
        weight_decay: eta.
        loss: "cosine" or "squared".

    Raises:
        UserError: an unknown predictor or loss, a rate that is none, or a gradient through a target that is not
            the online output itself: without stop-gradient both branches are alike, and their gradients add up
            to twice one of them; only that case is in the model.
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
        """Refuse what cannot be meant."""
        if self.predictor not in get_args(Predictor):
            raise unknown("predictor", self.predictor, get_args(Predictor))
        if self.loss not in get_args(Loss):
            raise unknown("loss", self.loss, get_args(Loss))
        for name, value in (("rate", self.rate), ("ema", self.ema), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} is a finite number at or above 0, got {value}")
        alike = (self.online, self.target, self.ema) == (None, None, None) and self.predictor == "filter"
        if not (self.stop_gradient or alike):
            raise UserError("without stop-gradient both branches are alike: leave online, target and ema at None")


# The rows of the design's table, and what each does to the online rank (tests hold it). "Flat": views share the
# same part of every direction (X = rho A, one number rho). Else rho is larger in strong directions, and alignment
# alone prefers those.
FLOWS: Mapping[str, Flow] = MappingProxyType(
    {
        "symsimsiam": Flow(stop_gradient=False),  # flat: stays; else falls towards 1
        "stop_gradient": Flow(),  # the same at half the pace
        "ema_target": Flow(ema=0.1),  # the same, slower still
        "fixed_predictor": Flow(online="power:1", predictor="fixed"),  # grows, overshoots, then falls
        "learned_predictor": Flow(online="power:1", predictor="learned"),  # grows; in balance it is power:1
        "tian2021": Flow(online="power:1", predictor="learned", ema=1.0, weight_decay=0.01, loss="squared"),
        "low_pass_online": Flow(online="power:0.5"),  # flat: grows to R; else until g is as steep as rho
        "high_pass_target": Flow(target="power:-0.5"),  # likewise
        "weight_decay": Flow(online="power:0.5", weight_decay=0.002),  # the same path, ever faster: |W| shrinks
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class FlowResult:
    """A row of the linear model along time.

    Args:
        times: (T,), fewer than asked for where the flow ended early.
        online: singular values of P over sqrt(N) at each time (T, R), descending.
        target: of T.
        erank_online: effective rank of P, of the correlation (T,).
        erank_target: of T.
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

    In the shared eigenspace W, Wp, X and X' are diagonal, stay so, and are given as their diagonals. Under the
    cosine loss time scales with |W|^2, which the flow itself does not change (weight decay does).

    Args:
        row: a `Flow`, or a name of `FLOWS`.
        encoder: W at time 0, (R,) or (D, d).
        signal: X, (R,) or symmetric (d, d).
        noise: X', likewise.
        times: increasing, from 0.
        predictor: Wp at time 0 where it is fixed or learned, (R,) or (D, D); by default the row's gain.
        partial: give the times before a flow diverges, or directions die out in finite time (a high-pass online
            does that), rather than raise.

    Returns:
        Spectra and ranks at those times, float64.

    Raises:
        UserError: an unknown row, shapes that do not fit, or times that do not increase from 0.
        NonFiniteError: the flow diverges, or asks for more than 20,000 evaluations.

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
            f"a predictor at time 0 has the shape {tuple(square)} and goes with a row whose predictor is fixed or "
            f"learned; got {tuple(predictor.shape)} for {row.predictor!r}"
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
    """States at the times, from `start` at the first; fewer where the flow ends early and `partial` allows it."""
    solver = DOP853(velocity, 0.0, start, times[-1], rtol=1e-9, atol=1e-12 * float(np.abs(start).max()))
    solved = [start]
    while len(solved) < len(times):
        if solver.step() is not None or solver.nfev > _MOST_CALLS:
            if partial and len(solved) > 1:
                break
            raise NonFiniteError(f"the linear flow diverges or grows too stiff at t = {solver.t:.4g}: end before")
        between = solver.dense_output()
        solved += [between(time) for time in times[len(solved) :] if time <= solver.t]
    return solved


def _checked(
    encoder: Tensor, signal: Tensor, noise: Tensor, times: Tensor | Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W, X, A and the times in float64."""
    inputs = encoder.shape[-1:] * encoder.ndim
    if encoder.ndim not in (1, 2) or not encoder.numel() or signal.shape != inputs or noise.shape != inputs:
        raise UserError(
            "a linear flow takes encoder, signal and noise of shapes (R,), (R,), (R,), or (D, d), (d, d), (d, d); "
            f"got {', '.join(str(tuple(part.shape)) for part in (encoder, signal, noise))}"
        )
    w, x, n, at = (torch.as_tensor(part, dtype=torch.float64) for part in (encoder, signal, noise, times))
    if not all(part.isfinite().all() for part in (w, x, n)) or not w.any():
        raise UserError("a linear flow takes finite numbers, and an encoder that is not all 0")
    if at.ndim != 1 or len(at) < 2 or at[0] != 0 or not (at.diff() > 0).all() or not at.isfinite().all():
        raise UserError(f"times are two or more, increasing from 0; got {at.flatten().tolist()[:5]}")
    return w, x, x + n, at


# A vector stands for the diagonal matrix that it is in the shared eigenspace. One rule serves both: * for @, and a
# vector is its own transpose; sum((P A) * P) is tr(P A P^T) either way.


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return left * right if left.ndim == 1 else left @ right


def _transposed(matrix: Tensor) -> Tensor:
    return matrix if matrix.ndim == 1 else matrix.mT


def _map(gain: str | Gain | None, w: Tensor, a: Tensor) -> Tensor:
    """V g V^T of the correlation W A W^T, with gain 0 in its null space; the identity for None."""
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
    """d/dt of W, of Wp where it is fixed or learned, and of Wa where it is an EMA (the module's docstring)."""
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
