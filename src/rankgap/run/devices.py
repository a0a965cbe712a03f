"""What a run computes on: its device, precision and processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from rankgap.choices import Precision
from rankgap.errors import UserError, unknown
from rankgap.run.config import Autocast, TrainConfig

MOST_WORKERS = 1024  # processes


def find_device(accelerator: str) -> torch.device:
    """The device that a run computes on.

    Args:
        accelerator: auto, cpu, gpu, cuda or mps.

    Raises:
        UserError: an unknown accelerator, or one that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted: dict[str, Iterable[str]] = {"auto": available, "gpu": ("cuda", "mps")}
    wanted |= {name: (name,) for name in available}
    if accelerator not in wanted:
        raise unknown("accelerator", accelerator, wanted)
    found = next((name for name in wanted[accelerator] if available[name]), None)
    if found is None:
        raise UserError(f"--accelerator {accelerator}: torch finds none on this machine; leave it out, or use cpu")
    return torch.device(found)


def check_processes(config: TrainConfig, device: torch.device) -> None:
    """Reject more processes than the machine can use, before they are started."""
    have = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, max(os.cpu_count() or 1, 2))
    if config.devices > have:
        raise UserError(f"--devices must be at most {have} with --accelerator {device.type}, got {config.devices}")
    if config.workers is not None and config.workers > MOST_WORKERS:
        raise UserError(f"--workers must be at most {MOST_WORKERS}, got {config.workers}")


def find_precision(precision: Precision, device: torch.device) -> Autocast:
    """The precision that "auto" stands for on a device."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "32-true"


def find_workers(asked: int | None, device: torch.device, *, in_memory: bool = False) -> int:
    """The number of processes that decode files ahead: by default one per core, but none for sets in memory.

    None on a CPU either, where they would take the network's cores: without them, threads on all cores decode a
    batch, and then all cores compute it.
    """
    if asked is not None:
        return asked
    return 0 if in_memory or device.type == "cpu" else (os.cpu_count() or 1)
