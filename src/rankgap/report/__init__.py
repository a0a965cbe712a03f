"""Pictures of runs and of designs."""

from rankgap.report.design import design_figure
from rankgap.report.figures import (
    RankTrace,
    ResultRow,
    alignment_figure,
    filters_figure,
    mini_figure,
    ranks_figure,
)
from rankgap.report.sheet import contact_sheet

__all__ = [
    "RankTrace",
    "ResultRow",
    "alignment_figure",
    "contact_sheet",
    "design_figure",
    "filters_figure",
    "mini_figure",
    "ranks_figure",
]
