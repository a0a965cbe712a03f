"""The errors a user can mend, and how a wrong name is answered."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What the user asked for cannot be done; the message says what to change (commands exit with 2)."""


class NonFiniteError(RuntimeError):
    """Training met a loss or a spectrum that is not finite (commands exit with 3)."""


class InterruptedRunError(Exception):
    """Training was interrupted, and can go on (commands exit with 130)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A `UserError` that lists what exists and, where one is near, the name that was probably meant.

    Args:
        kind: what was asked for, in one word: "method", "gain", "data set", "backbone".
        name: the name that is not known.
        known: the names that are.

    Example:
        >>> print(unknown("method", "simsam", ["byol", "simsiam"]))
        unknown method 'simsam': did you mean 'simsiam'? There are: byol, simsiam
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}There are: {', '.join(names)}")
