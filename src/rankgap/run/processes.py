"""Which process of a run prints and writes."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only


def is_main_process() -> bool:
    """Whether this process prints and writes for its run; the others of a distributed run only compute."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]
