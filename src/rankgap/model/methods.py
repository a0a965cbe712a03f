"""The zoo. A method is a row: which maps stand on the two branches, and how they are aligned.

To add a method, add a row to `METHODS`. A new map registers itself; see `rankgap.model.maps`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from rankgap.choices import Side

# The modules of the maps are imported for the maps that they register.
from rankgap.errors import unknown
from rankgap.filters.gains import GAINS
from rankgap.model import assignments, closed_forms, predictor, spectral_maps  # noqa: F401
from rankgap.model.maps import FILTER, MapKind, find_map, kinds_on

Body = Literal["byol", "simsiam", "swav", "dino"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A row of the zoo.

    Args:
        online: the maps of the online branch, in order: names of registered maps (`maps.MAPS`), or gains of a
            spectral filter.
        target: the same for the target branch.
        alignment: a name of `alignments.ALIGNMENTS`.
        body: the method whose projector, optimiser and views it is trained with by default.
        ema: whether the target branch is an EMA copy; otherwise it shares the weights.
        stop_gradient: whether the target is a constant.
        source: the paper.
    """

    online: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    alignment: str = "cosine"
    body: Body
    ema: bool = False
    stop_gradient: bool = True
    source: str

    def maps(self, side: Side) -> list[tuple[MapKind, str]]:
        """The maps of a branch in order, each with its argument.

        Raises:
            UserError: a name that is neither a map of this side nor a gain.
        """
        return [find_map(text, side) for text in (self.online if side == "online" else self.target)]

    @property
    def assigns(self) -> bool:
        """Whether a map of either branch assigns to prototypes."""
        return any(kind.assigns for kind, _ in (*self.maps("online"), *self.maps("target")))


METHODS: dict[str, Method] = {
    "siamese": Method(
        alignment="cosine",
        body="byol",
        stop_gradient=False,
        source="the control: nothing keeps it from collapsing, and it does",
    ),
    "symsimsiam": Method(
        alignment="centred_cosine",
        body="simsiam",
        stop_gradient=False,
        source="Zhuo et al. 2023, section 3: symmetric, centred; collapses in dimension",
    ),
    "simsiam": Method(online=("predictor",), body="simsiam", source="Chen & He 2021"),
    "byol": Method(
        online=("predictor",), alignment="regression", body="byol", ema=True, source="Grill et al. 2020"
    ),
    "swav": Method(
        online=("assignment",),
        target=("sinkhorn",),
        alignment="cross_entropy",
        body="swav",
        source="Caron et al. 2020",
    ),
    "dino": Method(
        online=("assignment",),
        target=("centred_assignment",),
        alignment="cross_entropy",
        body="dino",
        ema=True,
        source="Caron et al. 2021",
    ),
    "directpred": Method(
        online=("directpred",), alignment="regression", body="byol", ema=True, source="Tian et al. 2021"
    ),
    # The power 1/2 would be directpred, and 1 is directcopy except for eps and momentum.
    "directset": Method(
        online=("directset:2",), alignment="regression", body="byol", ema=True, source="Wang et al. 2021"
    ),
    "directcopy": Method(
        online=("directcopy",),
        alignment="regression",
        body="byol",
        ema=True,
        source="Wang et al. 2021, as Halvagal et al. 2023 run it",
    ),
    "isoloss": Method(
        online=("isoloss",), alignment="regression", body="byol", ema=True, source="Halvagal et al. 2023, cosine"
    ),
    "isoloss_l2": Method(
        online=("isoloss",), alignment="squared", body="byol", ema=True, source="Halvagal et al. 2023, Euclidean"
    ),
}


def design(method: str, *, online: str | None = None, target: str | None = None) -> Method:
    """A row of the zoo, with the given maps on its branches.

    A filter takes the place of the predictor, or of the row's own filter; where a method assigns to prototypes, it
    acts on the embeddings before they are assigned. A target filter alone also removes the predictor, which would
    be a second asymmetry; `online="predictor"` keeps it.

    Args:
        method: a name of `METHODS`.
        online: None (the method's own), "identity", a map such as "predictor" or "directset:2", or a gain such as
            "power:0.5".
        target: None, "identity", a map of the target branch, or a gain such as "power:-0.5".

    Raises:
        UserError: an unknown method or gain, or a predictor on the target.

    Example:
        >>> design("simsiam", target="power:-0.5").online
        ()
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    row = METHODS[method]
    if target not in (None, "identity") and online is None:
        online = "identity"
    return dataclasses.replace(
        row, online=_replaced(row.online, online, "online"), target=_replaced(row.target, target, "target")
    )


def _replaced(maps: tuple[str, ...], choice: str | None, side: Side) -> tuple[str, ...]:
    """The maps of a branch with the user's choice in place of its predictor and filter, before any prototypes."""
    if choice is None:
        return maps
    kinds = {text: find_map(text, side)[0] for text in maps}
    rest = tuple(text for text, kind in kinds.items() if not kind.predicts and kind.name != FILTER)
    if choice == "identity":
        return rest
    if find_map(choice, side)[0].assigns:
        raise unknown("map", choice, [*GAINS, "power:p", "identity", *choices(side)])
    return (choice, *rest)


def title(method: str, *, online: str | None = None, target: str | None = None) -> str:
    """A design's name in tables: its method, and the filters on it."""
    parts = [f"{side} {gain}" for side, gain in (("online", online), ("target", target)) if gain is not None]
    return " ".join([method, *parts])


def choices(side: Side) -> list[str]:
    """The maps that a user may put on a branch in place of a gain, as the help shows them."""
    return [kind.label for kind in kinds_on(side).values() if not kind.assigns and kind.name != FILTER]
