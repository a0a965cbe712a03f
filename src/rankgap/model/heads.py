"""Heads: the options of the projector, the prototypes, the teacher and the maps, which follow the encoder.

Each group of options is defined beside the code that reads it; this file only collects them, as recipes nest them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankgap.choices import Side
from rankgap.model.branches import TeacherOptions
from rankgap.model.maps import MapKind
from rankgap.model.mlp import ProjectorOptions
from rankgap.model.prototypes import PrototypeOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """The options of everything after the encoder.

    Args:
        projector: the projector's layers.
        prototypes: number and schedule of the prototypes, for methods that assign to them.
        teacher: momentum of the EMA teacher, for methods that have one.
        online: map -> its options, for maps of the online branch; a map that is not listed has its defaults.
        target: the same for the target branch.

    Example:
        >>> from rankgap.model.assignments import SinkhornOptions
        >>> from rankgap.model.maps import MAPS
        >>> projector = ProjectorOptions(widths=(64, 32))
        >>> heads = Heads(projector=projector, target={"sinkhorn": SinkhornOptions(eps=0.1)})
        >>> heads.options("target", MAPS["sinkhorn"]).eps
        0.1
    """

    projector: ProjectorOptions
    prototypes: PrototypeOptions = field(default_factory=PrototypeOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    online: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)

    def of(self, side: Side) -> Mapping[str, Any]:
        """The options of a branch's maps, by name."""
        return self.online if side == "online" else self.target

    def options(self, side: Side, kind: MapKind, argument: str = "") -> Any:
        """The options of a map on a branch: those given, or the map's defaults, configured by its argument."""
        return kind.configure(self.of(side).get(kind.name, kind.options), argument)
