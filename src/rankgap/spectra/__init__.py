"""Spectra of batches: effective rank, Gram matrices, and two branches side by side."""

from rankgap.spectra.effective_rank import (
    Convention,
    effective_rank,
    effective_rank_of,
    mean_energy,
    rank_difference,
    rankme,
)
from rankgap.spectra.gram import rank_tolerance, singular_values
from rankgap.spectra.pair import (
    PairSpectrum,
    eigenspace_alignment,
    low_pass_score,
    measured_filter,
    pair_spectrum,
    transfer,
)
from rankgap.spectra.processes import gather_rows
from rankgap.spectra.tokens import between_image_share, image_means, position_share

__all__ = [
    "Convention",
    "PairSpectrum",
    "between_image_share",
    "effective_rank",
    "effective_rank_of",
    "eigenspace_alignment",
    "gather_rows",
    "image_means",
    "low_pass_score",
    "mean_energy",
    "measured_filter",
    "pair_spectrum",
    "position_share",
    "rank_difference",
    "rank_tolerance",
    "rankme",
    "singular_values",
    "transfer",
]
