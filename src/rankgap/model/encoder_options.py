"""The options of the encoder."""

from __future__ import annotations

from dataclasses import dataclass

from rankgap.errors import check_within


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """The encoder that a recipe was published for, and its stochastic depth.

    Args:
        backbone: name of the encoder, used where --backbone names none; None for the default.
        drop_path: probability that an image skips the last residual block; it grows linearly from 0 at the first.
            The EMA teacher skips none.
    """

    backbone: str | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_within(self, drop_path=(0, 0.99))
