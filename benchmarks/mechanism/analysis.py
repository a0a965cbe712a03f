"""Statistics of the mechanism: intervals over seeds, a measured filter as a gain, early ranks and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from benchmarks.cifar10_mini.runs import Finished, run_one
from rankgap.filters.gains import GAINS, Gain
from rankgap.run.config import TrainConfig
from rankgap.spectra.pair import PairSpectrum

EARLY = (0.0, 2.0)  # epochs of ten, decided before the correlation was looked at
RESAMPLES = 10_000

Places = Literal["singular value", "both"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds, and half the width of Student's 95% interval (nan for one seed)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


def transfer_tau(pair: PairSpectrum) -> float:
    """Weighted tau of transfer and singular value (Vigna 2015): 1 if the transfer never falls as s grows.

    Each exchange is weighted by the places of its two directions, 1 / i + 1 / j, so hundreds of directions count.
    `low_pass_score` weighs by energy, so only the first few count there.

    A place is that of the singular value alone. scipy's default is the mean of two taus, one with places by
    singular value and one with places by transfer; see `tau_by_place`.
    """
    return tau_by_place(pair.spectrum_target[: len(pair.transfer)].tolist(), pair.transfer.tolist())


def tau_by_place(s: Sequence[float], transfer: Sequence[float], places: Places = "singular value") -> float:
    """Weighted tau of two columns that are sorted by the first, falling.

    Args:
        s: singular values (R,).
        transfer: of their directions (R,).
        places: what a direction's place is by: the singular value, or both in turn, averaged (scipy's default).
            By transfer, a weak direction whose transfer is large by noise has a high place.
    """
    rank = np.arange(len(s)) if places == "singular value" else True
    return float(stats.weightedtau(s, transfer, rank=rank).statistic)


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured filter as a function: straight lines between points in log g over log x, constant outside them.

    Args:
        x: singular values over sqrt(N), ascending (R,).
        g: gains above 0 (R,).
    """

    x: tuple[float, ...]
    g: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), elementwise, in the dtype of `x`."""
        at = x.detach().double().clamp_min(self.x[0]).log().cpu().numpy()
        return torch.from_numpy(np.exp(np.interp(at, np.log(self.x), np.log(self.g)))).to(x)


def gain_of(name: str, x: Tensor, g: Tensor) -> Gain:
    """The non-decreasing gain nearest to a measured one: isotonic regression of g on x, weighted by energies x^2.

    Args:
        name: of the gain.
        x: singular values over sqrt(N) (R,), in any order.
        g: measured gains (R,); they may be noisy, and negative if x is small.
    """
    order = x.argsort()
    x, g = x[order].double(), g[order].double()
    fit = IsotonicRegression(y_min=1e-3 * float(g.max()))
    smooth = fit.fit_transform(x.numpy(), g.numpy(), sample_weight=x.square().numpy())
    return Gain.of(name, Measured(tuple(x.tolist()), tuple(smooth.tolist())))


def with_its_own_filter(config: TrainConfig, filters: list[dict[str, Any]], kind: str) -> Finished:
    """SimSiam's run repeated with the same seed, its predictor replaced by the filter that was measured there."""
    found = next(f for f in filters if (f["method"], f["seed"]) == (config.method, config.seed))
    name = f"own_{kind}"
    GAINS[name] = gain_of(name, torch.tensor(found["x"]), torch.tensor(found[kind]))
    return run_one(config)


def early_difference(run: Finished) -> float:
    """Mean rank difference over the readings of the first epochs."""
    epoch, online, target = (np.array(run.metrics[k]) for k in ("epoch", "erank_online", "erank_target"))
    among = (epoch > EARLY[0]) & (epoch <= EARLY[1])
    return float((target - online)[among].mean())


@dataclass(frozen=True, slots=True)
class Foretold:
    """How well a first number foretells a second, over runs of several designs.

    Args:
        correlation: Spearman's, over all runs.
        low: lower end of its 95% interval; designs are drawn with replacement, with all their seeds.
        high: upper end of the interval.
        runs: number of runs.
        designs: number of designs.
    """

    correlation: float
    low: float
    high: float
    runs: int
    designs: int


def foretold(designs: Sequence[str], first: Sequence[float], second: Sequence[float]) -> Foretold:
    """Spearman's correlation of two numbers of each run, and its interval over designs.

    Runs of one design are alike, so designs are drawn anew and not runs: the interval is about other designs.

    Args:
        designs: the design of each run.
        first: the number that is known early.
        second: the number that it should foretell.
    """
    x, y, names = np.array(first), np.array(second), np.unique(designs)
    members = {name: np.flatnonzero(np.array(designs) == name) for name in names}
    random = np.random.default_rng(0)

    def drawn() -> float:
        while True:  # a draw of one design alone may leave nothing to correlate
            picked: NDArray[np.int64] = np.concatenate([members[n] for n in random.choice(names, len(names))])
            if np.ptp(x[picked]) and np.ptp(y[picked]):
                return float(stats.spearmanr(x[picked], y[picked]).statistic)

    low, high = np.percentile([drawn() for _ in range(RESAMPLES)], [2.5, 97.5])
    return Foretold(float(stats.spearmanr(x, y).statistic), float(low), float(high), len(x), len(names))
