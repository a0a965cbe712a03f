"""The commands on methods and filters."""

from __future__ import annotations

import os
from pathlib import Path

from rankgap.errors import UserError


def methods() -> None:
    """Show the zoo of methods as a table."""
    from rankgap.show.terminal import show_methods

    show_methods()


def design(
    online: str | None = None, target: str | None = None, spectrum: str | None = None, out: str = "design.png"
) -> None:
    """Assess a pair of filters without training: kind, rank difference, growth, numerics, and a picture.

    Args:
        online: the gain of the online filter: power:0.5, log1p, or a formula in s, such as "s/(s+0.1)".
        target: the gain of the target filter (power:-0.5).
        spectrum: the spectrum to assess it on: a run folder, or singular values over sqrt(batch size) in a file or
            as numbers (4,3,2,1); by default 256 directions whose eigenvalues fall as 1/j.
        out: the picture's file; its suffix chooses the format: .png, .pdf or .svg.
    """
    from rankgap.model.maps import MAPS
    from rankgap.run.files import writing
    from rankgap.show.design_figure import design_figure
    from rankgap.show.outputs import PICTURE, output_file
    from rankgap.show.terminal import show_assessment
    from rankgap.theory.design import assess
    from rankgap.theory.reference import reference_spectrum

    picture = output_file(out, PICTURE)
    for gain in (online, target):
        if gain is not None and gain.partition(":")[0] in MAPS:
            raise UserError(f"expected a gain such as power:0.5, got {gain}, which a run sets or learns")
    if spectrum is not None and os.path.isdir(spectrum):
        from rankgap.run.folder import RunFolder
        from rankgap.run.reference import spectrum_of_run

        reference = spectrum_of_run(RunFolder(Path(spectrum)))
    else:
        reference = reference_spectrum(spectrum)
    found = assess(online, target, reference)
    with writing(picture):
        design_figure(found, picture)
    show_assessment(found, picture)
