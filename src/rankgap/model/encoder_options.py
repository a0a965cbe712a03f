"""The options of the encoder, and the sizes of views that fit it. Nothing here needs timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rankgap.errors import check_within

Stem = Literal["auto", "small", "own"]  # of a ResNet, see `build_encoder`


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


def fitting_size(size: float, patch: int) -> int:
    """The multiple of a transformer's patch that is nearest to a size in pixels, one patch at least.

    Example:
        >>> fitting_size(27.4, 16), fitting_size(5, 16), fitting_size(96, 14), fitting_size(27.4, 1)
        (32, 16, 98, 27)
    """
    return max(patch, patch * round(size / patch))
