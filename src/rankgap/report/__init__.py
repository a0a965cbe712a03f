"""Pictures of runs."""

from rankgap.report.figures import RankTrace, ResultRow, contact_sheet, mini_figure, ranks_figure

__all__ = ["RankTrace", "ResultRow", "contact_sheet", "mini_figure", "ranks_figure"]
