"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import rankgap


def machine() -> str:
    """Processor, cores or card, and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, rankgap {rankgap.__version__}"
    return f"{cpu}, {device}; {versions}"
