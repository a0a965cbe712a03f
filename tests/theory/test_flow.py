from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import NonFiniteError, UserError
from rankgap.filters.spectral import spectral_filter
from rankgap.spectra.effective_rank import effective_rank
from rankgap.theory import FLOWS, Flow, FlowResult, linear_flow
from rankgap.theory.flow import Loss
from tests.matrices import gaussian, orthogonal

properties = settings(max_examples=25, derandomize=True, deadline=None)


def row(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


S = row([3.0, 2.0, 1.5, 0.8, 0.4])
FLAT = torch.full((5,), 0.8, dtype=torch.float64)  # what views share of each direction
TILTED = S**2 / (S**2 + 0.5)
TIMES = row([0.0, 0.5, 3.0, 12.0])
EVERY = {
    **FLOWS,
    "squared low-pass": Flow(online="log1p", loss="squared"),
    "squared high-pass": Flow(target="power:-1", loss="squared"),
    "both and EMA": Flow(online="s/(s+1)", target="power:-0.5", ema=0.3, weight_decay=0.01),
    "fixed, squared": Flow(online="power:1", predictor="fixed", ema=0.3, loss="squared"),
    "learned slowly": Flow(online="power:0.5", predictor="learned", rate=0.3, target="power:-0.3"),
}


def white(flow: str | Flow, shared: Tensor, times: Tensor = TIMES, s: Tensor = S) -> FlowResult:
    """A flow on white inputs, where W's singular values are the output's."""
    return linear_flow(flow, s, shared, 1 - shared, times)


def paired(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views of n images, and the same two swapped, so that their correlation is exactly symmetric."""
    image = gaussian(n, d, seed=seed) * torch.linspace(2, 0.5, d, dtype=torch.float64)
    one, two = (image + 0.7 * gaussian(n, d, seed=seed + i) for i in (1, 2))
    return torch.cat([one, two]), torch.cat([two, one])


def descend(flow: Flow, w: Tensor, wp: Tensor, views: tuple[Tensor, Tensor], end: float, steps: int) -> Tensor:
    """W at the end, by Runge-Kutta on autograd's gradient of the loss with the library's own filter."""
    one, two = views

    def rates(state: list[Tensor]) -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in state]
        w, wp, wa = leaves
        z = one @ w.T
        online = z if flow.online is None else z @ wp.T
        if flow.predictor == "filter" and flow.online is not None:
            online = spectral_filter(z, flow.online)
        target = two @ (w if flow.ema is None else wa).T
        if flow.target is not None:
            target = spectral_filter(target, flow.target, branch="target")
        if flow.stop_gradient:
            target = target.detach()
        if flow.loss == "squared":
            loss = (online - target).square().sum() / 2 / len(one)
        else:
            loss = -(online * target).sum() / (online.norm() * target.norm())
        dw, dp = torch.autograd.grad(loss, [w, wp], allow_unused=True)
        learns = flow.predictor == "learned" and dp is not None
        return [
            -dw - flow.weight_decay * w.detach(),
            -flow.rate * dp - flow.weight_decay * wp.detach() if learns else torch.zeros_like(wp),
            torch.zeros_like(w) if flow.ema is None else flow.ema * (w - wa).detach(),
        ]

    state, h = [w, wp, w], end / steps
    for _ in range(steps):
        k1 = rates(state)
        k2 = rates([y + h / 2 * k for y, k in zip(state, k1, strict=True)])
        k3 = rates([y + h / 2 * k for y, k in zip(state, k2, strict=True)])
        k4 = rates([y + h * k for y, k in zip(state, k3, strict=True)])
        sums = [a + 2 * b + 2 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
        state = [y + h / 6 * k for y, k in zip(state, sums, strict=True)]
    return state[0]


@pytest.mark.parametrize("name", EVERY)
def test_the_flow_is_the_gradient_of_the_loss_with_our_own_filter(name: str) -> None:
    flow = EVERY[name]
    one, two = views = paired(30, 4)
    total, signal = one.T @ one / len(one), one.T @ two / len(one)
    w, wp = gaussian(3, 4, seed=5), gaussian(3, 3, seed=6)
    held = flow.predictor != "filter"
    found = linear_flow(flow, w, signal, total - signal, [0.0, 0.2], predictor=wp if held else None)
    assert_close(found.encoder[-1], descend(flow, w, wp, views, 0.2, 120), rtol=1e-7, atol=1e-7)
    assert (found.encoder[-1] - w).norm() > 0.01
    if flow.predictor == "filter" and flow.online is not None:
        z = one @ found.encoder[-1].T
        online = spectral_filter(z, flow.online)
        assert float(found.erank_online[-1]) == pytest.approx(float(effective_rank(online)), rel=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_matrices_that_share_an_eigenspace_move_as_their_diagonals(name: str) -> None:
    q, v = orthogonal(5), orthogonal(5, 1)
    total = row([1.3, 0.9, 1.0, 1.1, 0.7])
    signal, times = TILTED * total, TIMES[:3]
    modes = linear_flow(name if name in FLOWS else EVERY[name], S, signal, total - signal, times)
    full = linear_flow(EVERY[name], v * S @ q.T, q * signal @ q.T, q * (total - signal) @ q.T, times)
    for a, b in zip(modes.encoder, full.encoder, strict=True):
        assert_close(b, v * a @ q.T, rtol=1e-7, atol=1e-7)
    for a, b in zip(modes.predictor, full.predictor, strict=True):
        assert_close(b, v * a @ v.T, rtol=1e-7, atol=1e-7)
    for field in ("online", "target", "erank_online", "erank_target"):
        assert_close(getattr(full, field), getattr(modes, field), rtol=1e-7, atol=1e-7)


def test_squared_without_a_predictor_decays_by_what_augmentation_adds() -> None:
    """dw/dt = -(n + eta) w, and twice the gradient without stop-gradient: collapse (Tian et al., section 3.1)."""
    noise = row([0.1, 0.3, 0.2, 0.9, 0.5])
    for flow, pace in (
        (Flow(loss="squared", weight_decay=0.05), 1),
        (Flow(loss="squared", stop_gradient=False), 2),
    ):
        found = linear_flow(flow, S, torch.ones(5), noise, TIMES)
        rate = pace * noise + flow.weight_decay
        assert_close(found.encoder, S * torch.exp(-rate * TIMES[:, None]), rtol=1e-7, atol=1e-9)


def test_squared_whitening_of_the_target_relaxes_to_what_is_shared() -> None:
    """x h(x) = 1, so dw/dt = rho - w."""
    found = white(Flow(target="power:-1", loss="squared"), TILTED)
    assert_close(found.encoder, TILTED + (S - TILTED) * torch.exp(-TIMES[:, None]), rtol=1e-7, atol=1e-9)


def test_squared_power_one_online_follows_its_closed_form() -> None:
    """dw/dt = w^2 (rho - w): ln(w / (rho - w)) / rho^2 - 1 / (rho w) grows as t."""

    def phase(w: Tensor) -> Tensor:
        return (w / (TILTED - w)).abs().log() / TILTED**2 - 1 / (TILTED * w)

    found = white(Flow(online="power:1", loss="squared"), TILTED)
    for t, w in zip(TIMES, found.encoder, strict=True):
        assert_close(phase(w) - phase(S), t.expand(5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "pace"), [("stop_gradient", 1), ("symsimsiam", 2)])
def test_without_a_filter_the_cosine_flow_is_a_power_iteration(name: str, pace: int) -> None:
    found = white(name, TILTED)
    grown = S * torch.exp(pace * TILTED * TIMES[:, None] / S.square().sum())
    expected = grown * (S.norm() / grown.norm(dim=1, keepdim=True))
    assert_close(found.encoder, expected, rtol=1e-7, atol=1e-9)


def test_the_learned_predictor_is_tian_s_system() -> None:
    """Their equations (16) to (18) for p, s and tau of one direction, with X = 1 and X' = sigma^2."""
    rate, beta, eta, noise = 0.7, 0.4, 0.05, 0.3
    flow = Flow(online="power:1", predictor="learned", rate=rate, ema=beta, weight_decay=eta, loss="squared")
    p0 = row([0.3, 0.2, 0.6, 0.4, 0.5])
    found = linear_flow(flow, S, torch.ones(5), torch.full((5,), noise), TIMES, predictor=p0)
    for i in range(5):

        def system(_: float, y: NDArray[np.float64]) -> list[float]:
            p, s, tau = y
            pull = tau - (1 + noise) * p
            ds = 2 * p * s * pull - 2 * eta * s
            return [rate * s * pull - eta * p, ds, beta * (1 - tau) - tau * ds / (2 * s)]

        start = [float(p0[i]), float(S[i]) ** 2, 1.0]
        theirs = solve_ivp(system, (0, 12), start, t_eval=TIMES.numpy(), method="Radau", rtol=1e-9, atol=1e-11).y
        assert_close(found.predictor[:, i], torch.from_numpy(theirs[0]), rtol=1e-6, atol=1e-7)
        assert_close(found.encoder[:, i].square(), torch.from_numpy(theirs[1]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_weight_decay_balances_predictor_and_encoder(loss: Loss) -> None:
    """Wp^T Wp / alpha - W W^T decays as exp(-2 eta t), whatever the loss (Tian et al., theorem 1)."""
    flow = Flow(predictor="learned", rate=0.5, weight_decay=0.03, loss=loss)
    w, wp = gaussian(3, 4, seed=2), gaussian(3, 3, seed=3)
    signal = torch.diag(row([0.9, 0.7, 0.5, 0.3]))
    found = linear_flow(flow, w, signal, torch.eye(4, dtype=torch.float64) - signal, TIMES, predictor=wp)
    for t, a, b in zip(TIMES, found.encoder, found.predictor, strict=True):
        assert_close(b.T @ b / 0.5 - a @ a.T, (wp.T @ wp / 0.5 - w @ w.T) * torch.exp(-0.06 * t))


def test_a_balanced_learned_predictor_is_the_low_pass_filter_power_one() -> None:
    learned, filtered = white("learned_predictor", TILTED), white(Flow(online="power:1"), TILTED)
    assert_close(learned.encoder, filtered.encoder, rtol=1e-7, atol=1e-9)
    assert_close(learned.predictor, learned.encoder, rtol=1e-7, atol=1e-9)


def test_weight_decay_keeps_the_path_and_speeds_it_up() -> None:
    """W = exp(-eta t) U(tau), tau = (exp(2 eta t) - 1) / (2 eta), for gains that are powers."""
    eta, times = FLOWS["weight_decay"].weight_decay, 10 * TIMES
    decayed = white("weight_decay", TILTED, times)
    plain = white("low_pass_online", TILTED, torch.expm1(2 * eta * times) / (2 * eta))
    assert_close(decayed.encoder, plain.encoder * torch.exp(-eta * times[:, None]), rtol=1e-7, atol=1e-9)
    assert_close(decayed.erank_online, plain.erank_online, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["symsimsiam", "low_pass_online", "high_pass_target", "ema_target"])
def test_the_cosine_flow_keeps_the_encoder_s_norm(name: str) -> None:
    norms = white(name, TILTED, 5 * TIMES).encoder.norm(dim=1)
    assert_close(norms, S.norm().expand(4), rtol=1e-7, atol=0)


UNDECAYED = [name for name, flow in FLOWS.items() if not flow.weight_decay]
ALONG = torch.linspace(0, 40, 81, dtype=torch.float64) * S.square().sum()


def test_the_effect_of_every_row_on_the_rank_where_views_share_all_directions_alike() -> None:
    found = {
        name: white(name, FLAT, ALONG).erank_online for name in FLOWS if name not in ("weight_decay", "tian2021")
    }
    for name in ("symsimsiam", "stop_gradient", "ema_target"):
        assert_close(found[name], found[name][:1].expand(81), rtol=1e-6, atol=0)
    for name in ("low_pass_online", "high_pass_target", "learned_predictor"):
        assert (found[name].diff() > -1e-9).all()
        assert float(found[name][-1]) == pytest.approx(5, abs=1e-3)
    fixed = found["fixed_predictor"]
    assert fixed.max() > fixed[0] + 1
    assert fixed[-1] < fixed.max() - 1  # its gains do not follow the spectrum: it overshoots


def test_the_effect_of_every_row_on_the_rank_where_views_share_more_of_strong_directions() -> None:
    found = {name: white(name, TILTED, ALONG / 10) for name in UNDECAYED}
    ends = {name: float(each.erank_online[-1]) for name, each in found.items()}
    for name in ("symsimsiam", "stop_gradient", "ema_target"):
        assert (found[name].erank_online.diff() < 0).all()
    assert ends["symsimsiam"] < ends["stop_gradient"] < ends["ema_target"]
    for name in ("low_pass_online", "high_pass_target", "learned_predictor", "fixed_predictor"):
        assert ends[name] > float(found[name].erank_online[0]) + 0.1
        assert (found[name].erank_target > found[name].erank_online).all()
    assert ends["high_pass_target"] > ends["low_pass_online"]
    assert float(white("symsimsiam", TILTED, ALONG).erank_online[-1]) < 1.1


def test_growth_ends_where_the_gain_is_as_steep_as_what_is_shared() -> None:
    """g / h is proportional to rho there: a power p online, or -p on the target, leaves the spectrum rho^(1/p)."""
    for flow in (Flow(online="power:1"), Flow(target="power:-1"), Flow(online="power:0.5", target="power:-0.5")):
        end = white(flow, TILTED, 6 * ALONG).encoder[-1]
        assert_close(end / end.norm(), TILTED / TILTED.norm(), rtol=1e-5, atol=0)


@properties
@given(st.integers(0, 10_000), st.integers(2, 20), st.floats(0.1, 2), st.booleans())
def test_both_ranks_rise_all_along_where_views_share_the_same(seed: int, n: int, p: float, online: bool) -> None:
    """d ln w / dt is above 0 for the weak and below 0 for the strong, with one crossing: entropy rises."""
    s = gaussian(n, seed=seed).abs() + 0.05
    flow = Flow(online=f"power:{p}") if online else Flow(target=f"power:{-min(p, 1)}")
    times = torch.linspace(0, 5, 11, dtype=torch.float64) * s.square().sum()
    found = linear_flow(flow, s, torch.full((n,), 0.7), torch.full((n,), 0.3), times)
    assert (found.erank_online.diff() >= -1e-7).all()
    assert (found.erank_target.diff() >= -1e-7).all()
    assert found.erank_online[-1] > found.erank_online[0]
    assert (found.erank_target >= found.erank_online).all()


def commutator(a: Tensor, b: Tensor) -> float:
    return float((a @ b - b @ a).norm() / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", ["low_pass_online", "high_pass_target"])
@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_filters_align_a_random_encoder_with_what_views_share(name: str, loss: Loss) -> None:
    flow = dataclasses.replace(FLOWS[name], loss=loss)
    signal = torch.diag(row([0.9, 0.8, 0.7, 0.55, 0.4]))
    noise = torch.eye(5, dtype=torch.float64) - signal
    found = linear_flow(flow, gaussian(5, 5), signal, noise, [0.0, 60.0, 600.0])
    apart = [commutator(w.T @ w, signal) for w in found.encoder]
    assert apart[0] > 0.05
    assert apart[2] < 0.01 < apart[1] if loss == "cosine" else apart[1] < 1e-3


def test_a_learned_predictor_aligns_with_the_correlation_under_weight_decay_alone() -> None:
    signal = torch.diag(row([0.9, 0.8, 0.7, 0.55, 0.4]))
    noise = torch.eye(5, dtype=torch.float64) - signal
    w, m = gaussian(5, 5), gaussian(5, 5, seed=1)
    for decay in (0.0, FLOWS["tian2021"].weight_decay):
        flow = dataclasses.replace(FLOWS["tian2021"], weight_decay=decay)
        found = linear_flow(flow, w, signal, noise, [0.0, 300.0], predictor=m @ m.T / 5)
        apart = [commutator(p, v @ signal @ v.T) for p, v in zip(found.predictor, found.encoder, strict=True)]
        assert apart[0] > 0.1
        assert apart[1] < 0.02 if decay else apart[1] > 0.1


def test_a_null_direction_neither_moves_nor_blows_up() -> None:
    s = row([2.0, 1.0, 1e-9])
    for flow in (Flow(target="power:-1"), Flow(online="power:0.5"), Flow(online="power:1", predictor="learned")):
        found = linear_flow(flow, s, row([0.8, 0.8, 0.8]), row([0.2, 0.2, 0.2]), TIMES)
        assert 0 <= found.encoder[-1][2] < 2e-9
        assert (found.target[:, 2] < 2e-9).all()
        assert float(found.erank_online[-1]) > float(found.erank_online[0])


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: linear_flow("lowpass", ONE, ONE, ONE, [0, 1]), "unknown flow 'lowpass': did you mean 'low_pass_"),
        (lambda: linear_flow(Flow(), ONE, torch.ones(3), ONE, [0, 1]), r"got \(2,\), \(3,\), \(2,\)"),
        (lambda: linear_flow(Flow(), torch.ones(3, 2), ONE, ONE, [0, 1]), r"got \(3, 2\), \(2,\), \(2,\)"),
        (lambda: linear_flow(Flow(), torch.ones(0), torch.ones(0), torch.ones(0), [0, 1]), r"got \(0,\)"),
        (lambda: linear_flow(Flow(), 0 * ONE, ONE, ONE, [0, 1]), "not all 0"),
        (lambda: linear_flow(Flow(), math.nan * ONE, ONE, ONE, [0, 1]), "expected finite encoder"),
        (lambda: linear_flow(Flow(), ONE, ONE, ONE, [1, 2]), r"that increase from 0, got \[1.0, 2.0\]"),
        (lambda: linear_flow(Flow(), ONE, ONE, ONE, [0, 2, 1]), "that increase from 0"),
        (lambda: linear_flow(Flow(), ONE, ONE, ONE, [0]), "two or more"),
        (lambda: linear_flow(Flow(), ONE, ONE, ONE, [0, math.inf]), "that increase from 0"),
        (lambda: linear_flow(Flow(), ONE, ONE, ONE, [0, 1], predictor=ONE), r"got shape \(2,\) for 'filter'"),
        (
            lambda: linear_flow(Flow(predictor="learned"), ONE, ONE, ONE, [0, 1], predictor=torch.eye(2)),
            r"expected a predictor of shape \(2,\), .* got shape \(2, 2\)",
        ),
        (lambda: linear_flow(Flow(online="log1"), ONE, ONE, ONE, [0, 1]), "did you mean 'log1p'"),
        (lambda: Flow(predictor="mlp"), "unknown predictor 'mlp'"),  # type: ignore[arg-type]
        (lambda: Flow(loss="cosin"), "did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: Flow(weight_decay=-1), "expected weight_decay to be a finite number at or above 0, got -1"),
        (lambda: Flow(ema=math.nan), "expected ema to be a finite number at or above 0, got nan"),
        (lambda: Flow(target="power:-1", stop_gradient=False), "leave online, target and ema at None"),
    ],
)
def test_an_invalid_flow_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()


def test_a_flow_that_diverges_is_stopped() -> None:
    with pytest.raises(NonFiniteError, match=r"diverges or becomes too stiff at t = 0\."):
        white(Flow(target="power:2", loss="squared"), FLAT)  # dw/dt = 0.8 w^3 - w
    with pytest.raises(NonFiniteError, match="diverges or becomes too stiff at t ="):
        white(Flow(online="power:0.5", weight_decay=0.1), FLAT, row([0.0, 200.0]))  # |W| falls to exp(-20)


def test_a_flow_can_be_returned_up_to_where_directions_die_out() -> None:
    """A whitening on the online branch pushes the weaker of two directions ever faster, until it is gone."""
    flow, times = Flow(online="power:-1"), torch.linspace(0, 100, 201, dtype=torch.float64)
    s, shared = row([2.0, 1.0]), row([0.8, 0.8])
    with pytest.raises(NonFiniteError, match="too stiff"):
        white(flow, shared, times, s)
    found = linear_flow(flow, s, shared, 1 - shared, times, partial=True)
    assert 2 < len(found.times) == len(found.erank_online) == len(found.encoder) < 201
    assert_close(found.times, times[: len(found.times)])
    assert float(found.erank_target[-1]) < 1.2 < 1.6 < float(found.erank_target[0])
    assert (found.erank_target.diff() < 0).all()
