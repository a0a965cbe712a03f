"""Spectral filters: gains by name or formula, applied by decomposition, by products, running, or learned."""

from rankgap.filters.gains import GAINS, AutoPower, Gain, Scale, parse_gain
from rankgap.filters.learned import LearnedFilter
from rankgap.filters.spectral import Estimator, Solver, SpectralFilter, spectral_filter

__all__ = [
    "GAINS",
    "AutoPower",
    "Estimator",
    "Gain",
    "LearnedFilter",
    "Scale",
    "Solver",
    "SpectralFilter",
    "parse_gain",
    "spectral_filter",
]
