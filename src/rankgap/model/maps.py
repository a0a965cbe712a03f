"""The maps on a branch: every map of the zoo registers its name, its sides and its options here.

A map takes the embeddings (V, B, D) of all views at once, because it may look at a batch as a whole (Sinkhorn,
centring), and treats each view as a batch of its own. To add one, write a module that takes a `Place` and its
options, and register it; the command line, the recipes and the tests that walk the registry then know it:

    @dataclass(frozen=True, kw_only=True, slots=True)
    class ScaleOptions:
        factor: float = 2.0

    @register_map("scale", "online", options=ScaleOptions())
    class Scale(nn.Module):
        def __init__(self, place: Place, options: ScaleOptions) -> None: ...

    rankgap train --online scale --settings online.scale.factor=3
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from rankgap.choices import Side
from rankgap.errors import UserError
from rankgap.filters.gains import GAINS, parse_gain
from rankgap.model.prototypes import Prototypes
from rankgap.spectra.pair import SIDES

Builder = Callable[["Place", Any], nn.Module]
_B = TypeVar("_B", bound=Builder)
FILTER = "filter"  # the map that a gain stands for; users write the gain, such as power:0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a map stands.

    Args:
        side: the branch.
        dim: width D of the embeddings.
        views: number of views that the map sees: V on the online branch, G on the target branch.
        prototypes: the branch's prototypes, if the method has any.
        argument: what the user wrote after the map's name (directset:2), or the gain of a filter.
    """

    side: Side = "online"
    dim: int
    views: int = 2
    prototypes: Prototypes | None = None
    argument: str = ""


def _as_they_are(options: Any, argument: str) -> Any:
    return options


@dataclass(frozen=True, kw_only=True, slots=True)
class MapKind:
    """A kind of map.

    Args:
        name: the name that users write.
        sides: the branches that it may stand on.
        build: (place, options) -> the module.
        options: the defaults, an instance of the map's own dataclass.
        predicts: whether the map takes the predictor's place.
        assigns: whether it assigns to prototypes, which the branch must have; a filter or predictor comes first.
        per_image: whether the rows of other images have no influence on a row.
        argument: one word for what follows the name after a colon; empty if the name stands alone.
        configure: (options, argument) -> the options to use; raises `UserError` if the argument is invalid.
    """

    name: str
    sides: tuple[Side, ...]
    build: Builder
    options: Any
    predicts: bool = False
    assigns: bool = False
    per_image: bool = False
    argument: str = ""
    configure: Callable[[Any, str], Any] = _as_they_are

    @property
    def label(self) -> str:
        """The name with its argument, as help shows it."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


MAPS: dict[str, MapKind] = {}


def register_map(
    name: str,
    *sides: Side,
    options: Any,
    predicts: bool = False,
    assigns: bool = False,
    per_image: bool = False,
    argument: str = "",
    configure: Callable[[Any, str], Any] = _as_they_are,
) -> Callable[[_B], _B]:
    """Register a map under a name; decorates its class, or a function that builds it. See `MapKind`.

    Raises:
        UserError: another map already has the name.
    """

    def register(build: _B) -> _B:
        if name in MAPS:
            raise UserError(f"there is already a map called {name!r}: register this one under another name")
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in (*GAINS, "power", "identity"):
            raise UserError(
                f"expected the name of a map, a word that is neither a gain nor identity, got {name!r}"
            )
        if not sides or not set(sides) <= set(SIDES):
            raise UserError(f"a map stands on the online branch, the target or both, got {list(sides)}")
        if not dataclasses.is_dataclass(options) or isinstance(options, type):
            raise UserError(f"a map's options are an instance of a dataclass, got {options!r}")
        MAPS[name] = MapKind(
            name=name,
            sides=sides,
            build=build,
            options=options,
            predicts=predicts,
            assigns=assigns,
            per_image=per_image,
            argument=argument,
            configure=configure,
        )
        return build

    return register


def kinds_on(side: Side) -> dict[str, MapKind]:
    """The registered maps that may stand on a side, by name."""
    return {name: kind for name, kind in MAPS.items() if side in kind.sides}


def find_map(text: str, side: Side) -> tuple[MapKind, str]:
    """The map that a text names, and its argument. The text is a registered name or the gain of a filter.

    Raises:
        UserError: a map of the other side, a name without its argument, or a text that is neither map nor gain.

    Example:
        >>> kind, argument = find_map("power:0.5", "online")
        >>> kind.name, argument
        ('filter', 'power:0.5')
    """
    name, colon, argument = text.partition(":")
    kind = MAPS.get(name)
    if kind is None or kind.name == FILTER or (colon and not kind.argument):
        others = [k.label for k in kinds_on(side).values() if k.name != FILTER and not k.assigns]
        parse_gain(text, beside=("identity", *others))
        return MAPS[FILTER], text
    if side not in kind.sides:
        raise UserError(
            f"{text} belongs on the {' or '.join(kind.sides)} branch; the {side} takes identity or a gain"
        )
    try:
        kind.configure(kind.options, argument)
    except UserError as error:
        raise UserError(f"{text!r}: {error}") from None
    return kind, argument
