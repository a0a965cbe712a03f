"""Two connected processes, for the tests of distributed code."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

WORLD = 2
needs_distributed = pytest.mark.skipif(
    not dist.is_available(), reason="this torch is built without torch.distributed"
)


def run_on_processes(check: Callable[[int], None], folder: Path) -> None:
    """Call `check(process)`, a module-level function, in each of `WORLD` gloo processes; all must return."""
    torch.multiprocessing.spawn(_worker, args=(check, str(folder)), nprocs=WORLD)  # type: ignore[attr-defined, no-untyped-call]
    assert sorted(p.name for p in folder.glob("done-*")) == ["done-0", "done-1"]


def _worker(process: int, check: Callable[[int], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=process, world_size=WORLD)
    try:
        check(process)
        gc.collect()  # a DDP model that is freed after its process group may abort the process
        dist.barrier()  # gloo may abort a process whose partner has already left
        Path(folder, f"done-{process}").touch()
    finally:
        dist.destroy_process_group()
