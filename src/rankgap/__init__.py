"""Train, watch and design non-contrastive self-supervised learning through its rank difference."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from rankgap.errors import missing

if TYPE_CHECKING:
    from rankgap.filters.spectral import SpectralFilter, spectral_filter
    from rankgap.model.branches import DualBranch, Outputs
    from rankgap.model.heads import Heads
    from rankgap.model.maps import MAPS, Place, register_map
    from rankgap.model.methods import METHODS, Method, design
    from rankgap.model.schedule import Clock
    from rankgap.run.build import build
    from rankgap.run.encoder import load_encoder
    from rankgap.show.plot import plot
    from rankgap.show.report.inline import Report, report
    from rankgap.spectra.effective_rank import effective_rank, rank_difference, rankme
    from rankgap.spectra.gram import singular_values
    from rankgap.spectra.streaming import EffectiveRank, PairSpectra
    from rankgap.training import TrainedRun, export, train
    from rankgap.views import ViewConfig, Views
    from rankgap.watch.doctor import Diagnosis, Doctor, Thresholds
    from rankgap.watch.lightning import RankCallback
    from rankgap.watch.monitor import RankMonitor

# Each name is imported on first use, so that spectra and filters work in a loop without Lightning or timm.
_HOMES = {
    "filters.spectral": ("SpectralFilter", "spectral_filter"),
    "model.branches": ("DualBranch", "Outputs"),
    "model.heads": ("Heads",),
    "model.maps": ("MAPS", "Place", "register_map"),
    "model.methods": ("METHODS", "Method", "design"),
    "model.schedule": ("Clock",),
    "run.build": ("build",),
    "run.encoder": ("load_encoder",),
    "show.plot": ("plot",),
    "show.report.inline": ("Report", "report"),
    "spectra.effective_rank": ("effective_rank", "rank_difference", "rankme"),
    "spectra.gram": ("singular_values",),
    "spectra.streaming": ("EffectiveRank", "PairSpectra"),
    "training": ("TrainedRun", "export", "train"),
    "views.random_views": ("ViewConfig", "Views"),
    "watch.doctor": ("Diagnosis", "Doctor", "Thresholds"),
    "watch.lightning": ("RankCallback",),
    "watch.monitor": ("RankMonitor",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MAPS",
    "METHODS",
    "Clock",
    "Diagnosis",
    "Doctor",
    "DualBranch",
    "EffectiveRank",
    "Heads",
    "Method",
    "Outputs",
    "PairSpectra",
    "Place",
    "RankCallback",
    "RankMonitor",
    "Report",
    "SpectralFilter",
    "Thresholds",
    "TrainedRun",
    "ViewConfig",
    "Views",
    "build",
    "design",
    "effective_rank",
    "export",
    "load_encoder",
    "plot",
    "rank_difference",
    "rankme",
    "register_map",
    "report",
    "singular_values",
    "spectral_filter",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("rankgap")  # pyproject.toml is its only source
    if name not in _HOME:
        raise AttributeError(f"module 'rankgap' has no attribute {name!r}")
    try:
        home = importlib.import_module(f"rankgap.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if (said := missing(error.name, f"rankgap.{name}")) is None:
            raise
        raise ModuleNotFoundError(said, name=error.name) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
