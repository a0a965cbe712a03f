"""How long a run would take with another view size or backbone, estimated from floating-point operations."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from rankgap.errors import UserError
from rankgap.model.backbones import build_encoder
from rankgap.run.plan import Plan

SIZES = (160, 128, 96, 64, 48, 32)  # px
_LEAST = 0.25  # share of the side; below this, most of an image's detail is lost
_WORTH = 0.8  # share of the time; a smaller saving is not worth the change


def flops(backbone: str, *, channels: int, size: int) -> int:
    """Floating-point operations of an encoder's forward pass for one image; nothing is computed.

    Raises:
        UserError: the backbone does not take images of this size.
    """
    with torch.device("meta"):
        encoder = build_encoder(backbone, channels=channels, size=size)
        image = torch.empty(2, channels, size, size)  # batch norm needs two
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    return int(counter.get_total_flops()) // 2


def cheaper(plan: Plan, seconds: float, limit: float) -> dict[str, float]:
    """Flags that would make a run faster, and about how long it would take with each.

    Args:
        plan: the run.
        seconds: the time that it takes now.
        limit: acceptable time in seconds; the largest size within it is named, or else the fastest.

    Returns:
        Flags -> seconds; empty for an encoder that has no name.
    """

    def time(backbone: str, size: int) -> float:
        try:
            return seconds * flops(backbone, channels=plan.train.channels, size=size) / now
        except UserError:
            return seconds

    try:
        now = flops(plan.backbone, channels=plan.train.channels, size=plan.size)
    except UserError:  # a module of the user's own
        return {}
    sizes = [size for size in SIZES if _LEAST * plan.size <= size < plan.size]
    found: dict[str, float] = {}
    for backbone in dict.fromkeys((plan.backbone, "resnet_tiny")):
        named = [] if backbone == plan.backbone else [f"--backbone {backbone}"]
        if named:
            found[named[0]] = time(backbone, plan.size)
        if sizes and not any(each <= limit for each in found.values()):
            times = {size: time(backbone, size) for size in sizes}
            size = next((size for size in sizes if times[size] <= limit), min(times, key=lambda size: times[size]))
            found[" ".join([f"--size {size}", *named])] = times[size]
    return {flags: each for flags, each in found.items() if each < _WORTH * seconds}
