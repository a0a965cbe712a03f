"""The report from Python: shown in a notebook, or written to a file."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankgap.data.names import shown
from rankgap.run.finding import find_runs
from rankgap.run.folder import RunFolder
from rankgap.show.outputs import PAGE, output_file
from rankgap.show.report.page import report_page, write_page

_HEIGHT = 760  # pixels


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """A report. As the last value of a notebook's cell it is shown there, within a frame.

    Args:
        runs: the runs that it is on.
        skipped: folders beside them that hold no run, each with the reason.
        page: the page, which holds all that it needs: about 5 MB.
    """

    runs: Sequence[RunFolder]
    skipped: Sequence[str]
    page: str = field(repr=False)

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write the page to a file; its folder is created if there is none.

        Raises:
            UserError: the file cannot be written, or is not an .html file.
        """
        write_page(self.page, os.fspath(out))

    def __repr__(self) -> str:
        names = shown(", ".join(str(run.path) for run in self.runs))
        return f"report on {names}: a notebook shows it, and .save('report.html') writes it to a file"

    def _repr_html_(self) -> str:
        # The frame keeps the page's styles, names and scripts apart from the notebook's.
        style = f"width:100%;height:{_HEIGHT}px;border:1px solid #8888"
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" title="{html.escape(repr(self))}" '
            f'sandbox="allow-scripts allow-downloads" style="{style}"></iframe>'
        )


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Report:
    """The report on one or more runs, as `rankgap report` writes it: verdicts, results, ranks, spectra, filters.

    A notebook shows it as the last value of a cell. It adds about 6 MB to the saved notebook, nearly all of it the
    script that draws; to keep the notebook small, give `out` and end the line with a semicolon.

    Args:
        runs: one or more run folders or folders of runs, as paths or as what `train` returns.
        out: a file to write it to (.html); None writes none.

    Raises:
        UserError: there is no run at a path, its files cannot be read, or the file cannot be written.

    Example:
        >>> import rankgap as rg
        >>> rg.report(["runs/a", "runs/b"], out="report.html")  # doctest: +SKIP
    """
    if out is not None:
        output_file(os.fspath(out), PAGE)  # before any work
    paths = [runs] if isinstance(runs, str | os.PathLike) else runs
    folders, skipped = find_runs([Path(path) for path in paths])
    made = Report(folders, skipped, report_page(folders))
    if out is not None:
        made.save(out)
    return made
