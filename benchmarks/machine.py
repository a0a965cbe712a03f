"""The machine that a benchmark runs on, in words, and its rate."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

import rankgap


def machine() -> str:
    """The processor, its cores or the card, the versions, and the commit if there is a repository."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, rankgap {rankgap.__version__}"
    return f"{cpu}, {device}; {versions}{_commit()}"


def _commit() -> str:
    """The commit that is measured, marked dirty if files differ from it."""
    words = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", commit {found.stdout.strip()}"


def matrix_rate(repeats: int = 9) -> float:
    """Operations per second of a large square bf16 product, two for each multiplication; the median of repeats."""
    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, device="cuda" if cuda else "cpu").bfloat16()
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates[1:])
