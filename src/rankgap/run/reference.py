"""The spectrum of a run, for designing filters."""

from __future__ import annotations

import math

from rankgap.errors import UserError
from rankgap.run.folder import RunFolder
from rankgap.theory.reference import Reference


def spectrum_of_run(folder: RunFolder) -> Reference:
    """The last spectrum of Z that a run kept: from a branch without a map, otherwise from its target.

    Raises:
        UserError: no run, a run without spectra, or a last spectrum that is all 0.
    """
    saved = folder.saved()
    if not (spectra := folder.spectra()):
        raise UserError(f"{folder.path} has no spectra yet: let it train for a step, or choose another run")
    last = spectra[-1]
    row = saved.method()
    s = last.spectrum_online if row.target and not row.online else last.spectrum_target
    note = f", after {' and '.join(row.target)}" if row.target and row.online else ""
    if not s.any():
        raise UserError(f"{folder.path}: the last spectrum is all 0, so the run has collapsed: choose another run")
    name = f"{folder.name} at step {last.step:,}{note}"
    return Reference(name, s / math.sqrt(last.rows), last.rows, saved.recipe.projector.widths[-1])
