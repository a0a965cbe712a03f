"""Train, watch and design non-contrastive self-supervised learning through its rank difference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankgap.branches import DualBranch, Outputs
    from rankgap.callback import RankCallback
    from rankgap.diagnosis import Diagnosis, Doctor
    from rankgap.experiment import load_encoder
    from rankgap.filters import SpectralFilter, spectral_filter
    from rankgap.maps import Clock
    from rankgap.methods import METHODS, Method, build, design
    from rankgap.monitor import RankMonitor
    from rankgap.spectra import effective_rank, rank_difference, rankme, singular_values
    from rankgap.streaming import EffectiveRank, PairSpectra
    from rankgap.views import ViewConfig, Views

__version__ = "0.1.0"

# A name is imported when it is first used: spectra and filters serve in a loop without Lightning or timm.
_HOMES = {
    "callback": ("RankCallback",),
    "diagnosis": ("Diagnosis", "Doctor"),
    "monitor": ("RankMonitor",),
    "streaming": ("EffectiveRank", "PairSpectra"),
    "branches": ("DualBranch", "Outputs"),
    "experiment": ("load_encoder",),
    "filters": ("SpectralFilter", "spectral_filter"),
    "maps": ("Clock",),
    "methods": ("METHODS", "Method", "build", "design"),
    "spectra": ("effective_rank", "rank_difference", "rankme", "singular_values"),
    "views": ("ViewConfig", "Views"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Clock",
    "Diagnosis",
    "Doctor",
    "DualBranch",
    "EffectiveRank",
    "Method",
    "Outputs",
    "PairSpectra",
    "RankCallback",
    "RankMonitor",
    "SpectralFilter",
    "ViewConfig",
    "Views",
    "build",
    "design",
    "effective_rank",
    "load_encoder",
    "rank_difference",
    "rankme",
    "singular_values",
    "spectral_filter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rankgap' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rankgap.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
