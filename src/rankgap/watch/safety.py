"""Watching never ends a training: what goes wrong in it is said once, and left out or switched off."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from rankgap.errors import UserError, attempt

_T = TypeVar("_T")


def warn(text: str) -> None:
    """Warn; where warnings are errors, that does not end the training either."""
    with suppress(UserWarning):
        warnings.warn(text, stacklevel=4)


class Safety:
    """Answers for what goes wrong while someone's training is watched.

    Args:
        strict: raise errors instead.

    Attributes:
        strict: whether errors are raised.
        skipped: what was left out, and why.
        disabled: why watching has ended; empty while it goes on.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.skipped: dict[str, str] = {}
        self.disabled = ""
        self._told: set[str] = set()

    def tell(self, about: str, text: str) -> None:
        """Warn, once about each subject."""
        if about not in self._told:
            self._told.add(about)
            warn(text)

    def or_skip(self, work: Callable[[], _T]) -> _T | None:
        """Run what may meet outputs that cannot be read; they are left out, with one warning."""
        try:
            return work()
        except UserError as error:
            if self.strict:
                raise
            self.skipped["readings"] = str(error)
            self.tell("readings", f"a step was not read: {error}")
            return None

    def guard(self, work: Callable[[], object], disable: Callable[[], object]) -> None:
        """Run what may fail in any way; a failure ends the watching, with one warning."""
        try:
            attempt(work, _failure, own=UserError)
        except UserError as error:
            if self.strict:
                raise
            self.disabled = str(error)
            disable()
            self.tell(
                "disabled",
                f"rankgap has stopped watching, and the training goes on: {error}. To see where this is raised, "
                "pass strict=True",
            )


def _failure(error: Exception) -> UserError:
    first = str(error).strip().partition("\n")[0]
    return UserError(f"{type(error).__name__}: {first or 'without a message'}")
