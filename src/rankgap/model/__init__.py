"""The picture as code: branches, the maps on them, the alignment, and the rows that combine them."""

from rankgap.model.assembly import assemble
from rankgap.model.branches import Branch, DualBranch, Outputs
from rankgap.model.heads import Heads
from rankgap.model.maps import MAPS, Place, register_map
from rankgap.model.methods import METHODS, Method, design
from rankgap.model.schedule import Clock

__all__ = [
    "MAPS",
    "METHODS",
    "Branch",
    "Clock",
    "DualBranch",
    "Heads",
    "Method",
    "Outputs",
    "Place",
    "assemble",
    "design",
    "register_map",
]
