"""Spectral filters: gains by name or formula, applied by decomposition, by products, running, or learned."""

from rankgap.filters.gains import GAINS, AutoPower, Gain, Scale, parse_gain
from rankgap.filters.learned import LearnedFilter, LearnedOptions
from rankgap.filters.spectral import Estimator, FilterOptions, Solver, SpectralFilter, spectral_filter

__all__ = [
    "GAINS",
    "AutoPower",
    "Estimator",
    "FilterOptions",
    "Gain",
    "LearnedFilter",
    "LearnedOptions",
    "Scale",
    "Solver",
    "SpectralFilter",
    "parse_gain",
    "spectral_filter",
]
