"""Errors that a user can act on, and the error for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The request cannot be carried out as given; the message says what to change (commands exit with 2)."""


class NonFiniteError(RuntimeError):
    """Training met a loss or a spectrum that is not finite (commands exit with 3)."""


class InterruptedRunError(Exception):
    """Training was interrupted and can be resumed (commands exit with 128 + the signal: 130 for Ctrl-C).

    Args:
        message: how to resume.
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int = 2) -> None:
        super().__init__(message)
        self.signal = signal


def unknown(kind: str, name: str, known: Iterable[str], *, listed: str | None = None) -> UserError:
    """A `UserError` that lists the known names and suggests the nearest one, if one is close.

    Args:
        kind: what the name stands for: "method", "gain", "data set", "backbone".
        name: the unknown name.
        known: the known names.
        listed: what shows the known names, where they are too many for a message.

    Example:
        >>> print(unknown("method", "simsam", ["byol", "simsiam"]))
        unknown method 'simsam': did you mean 'simsiam'? Expected one of byol, simsiam
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    expected = f"{'Expected' if near else 'expected'} one of {', '.join(names)}"
    choices = f"{listed} lists them" if listed else expected
    return UserError(f"unknown {kind} {name!r}: {guess}{choices}")
