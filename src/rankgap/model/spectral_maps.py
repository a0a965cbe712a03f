"""Spectral filters as maps of a branch; the filters themselves are in `rankgap.filters`."""

from __future__ import annotations

from dataclasses import asdict

from rankgap.filters.learned import LearnedFilter, LearnedOptions
from rankgap.filters.spectral import FilterOptions, SpectralFilter
from rankgap.model.maps import FILTER, Place, register_map


@register_map(FILTER, "online", "target", options=FilterOptions(), argument="gain")
def spectral_map(place: Place, options: FilterOptions) -> SpectralFilter:
    """The spectral filter of a gain: low-pass gains belong on the online branch, high-pass ones on the target."""
    return SpectralFilter(place.argument, place.side, dim=place.dim, **asdict(options))


@register_map("learned", "online", options=LearnedOptions(), predicts=True)
def learned_map(place: Place, options: LearnedOptions) -> LearnedFilter:
    """A low-pass filter whose gain is trained with the encoder."""
    return LearnedFilter(**asdict(options))
