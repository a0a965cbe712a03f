"""Time and peak memory as a size doubles: filters, effective ranks, the monitor, kNN, views, and data sources.

The exponent is the slope of a line through the logarithms of the last three sizes; smaller sizes show fixed costs.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import write_jpeg

import rankgap as rg
from benchmarks.suites.timing import Settings, seconds
from rankgap.data import load_data
from rankgap.data.loading import IN_MEMORY
from rankgap.evaluate.neighbours import Neighbours
from rankgap.filters.spectral import SpectralFilter
from rankgap.run.feed import EpochBatches
from rankgap.run.recipes import load_recipe
from rankgap.run.work import Work
from rankgap.spectra.effective_rank import effective_rank

MEBI = 2**20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The growth of one quantity.

    Args:
        what: the quantity that is measured.
        over: the size that doubles.
        sizes: the values of that size.
        seconds: the median time at each size.
        mebibytes: the peak memory at each size, beyond what was held before, in 2^20 bytes.
    """

    what: str
    over: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    mebibytes: tuple[float, ...]

    def exponent(self, values: tuple[float, ...]) -> float:
        """The exponent of the last three sizes."""
        log_sizes, logs = np.log(self.sizes[-3:]), np.log(np.maximum(values[-3:], 1e-9))
        return float(np.polyfit(log_sizes, logs, 1)[0])


def doubled(first: int, times: int) -> tuple[int, ...]:
    """`first`, doubled again and again."""
    return tuple(first * 2**i for i in range(times + 1))


def peak_memory(run: Callable[[], object]) -> float:
    """The peak mebibytes that a call adds to the card's memory, or to this process's resident set (Linux)."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / MEBI
    pa.default_memory_pool().release_unused()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / MEBI


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def grow(
    what: str, over: str, sizes: tuple[int, ...], make: Callable[[int], Callable[[], object]], repeats: int
) -> Growth:
    """Measure the call that `make(size)` returns, at every size."""
    times, memory = [], []
    for size in sizes:
        run = make(size)
        run()
        memory.append(peak_memory(run))
        times.append(statistics.median(seconds(partial(_done, run)) for _ in range(repeats)))
    return Growth(what=what, over=over, sizes=sizes, seconds=tuple(times), mebibytes=tuple(memory))


def _done(run: Callable[[], object]) -> None:
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rows(n: int, d: int) -> Tensor:
    """A batch with a decaying spectrum."""
    return (torch.randn(n, d) * torch.logspace(0, -2, d)).to(DEVICE)


def filtered(n: int, d: int, estimator: str = "batch") -> Callable[[], object]:
    """An online filter, forward and backward."""
    z = rows(n, d).requires_grad_()
    module = SpectralFilter("power:0.5", estimator=estimator, dim=d, every=1).to(DEVICE)  # type: ignore[arg-type]

    def run() -> None:
        z.grad = None
        module(z).sum().backward()

    return run


def ranked(n: int, d: int) -> Callable[[], object]:
    """The effective rank."""
    return partial(effective_rank, rows(n, d))


def watched(n: int, d: int) -> Callable[[], object]:
    """A reading of the monitor."""
    return partial(rg.RankMonitor().update, rows(n, d), rows(n, d))


def nearest(bank: int, queries: int, width: int) -> Callable[[], object]:
    """Votes of the nearest neighbours."""
    labels = torch.arange(bank, device=DEVICE) % 10
    return partial(Neighbours(rows(bank, width), labels).scores, rows(queries, width))


def viewed(batch: int, size: int) -> Callable[[], object]:
    """Two views of a batch by SimSiam's recipe."""
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
    views = rg.Views(load_recipe("cifar", "simsiam").views, size, (0.5,) * 3, (0.25,) * 3).to(DEVICE)
    return partial(views, images)


def encoded_images(folder: Path, count: int) -> None:
    """JPEG files of 64 px, and a Parquet table of the same bytes in the Hub's layout."""
    (folder / "files").mkdir(parents=True)
    (folder / "table").mkdir()
    for i in range(count):
        write_jpeg(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), str(folder / "files" / f"{i}.jpg"))
    rows = [{"bytes": path.read_bytes(), "path": None} for path in (folder / "files").iterdir()]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, struct)}), folder / "table" / "train.parquet")


def read(spec: str, memory: int, count: int) -> Callable[[], object]:
    """Open the set `spec` (which contains {count}), and read an epoch of batches of 256.

    The set is decoded at the start if it fits into `memory` bytes.
    """

    def epoch() -> None:
        images, _ = load_data(spec.format(count=count), memory=memory)
        assert images.in_memory == (memory > 0)
        batches = EpochBatches(images, Work(images=count, batch_size=256, epochs=1, features=128), seed=0, step=0)
        for i in range(len(batches)):
            batches[i]

    return epoch


def measure(settings: Settings) -> list[Growth]:
    """Measure each quantity over each of its sizes."""
    torch.manual_seed(0)
    n, repeats = doubled(128, 4), max(settings.repeats, 3)
    wide = doubled(256, 3)
    cases: list[tuple[str, str, tuple[int, ...], Callable[[int], Callable[[], object]]]] = [
        ("online filter, D 512", "N", n, lambda size: filtered(size, 512)),
        ("online filter, N 256", "D", doubled(256, 4), lambda size: filtered(256, size)),
        (
            "online filter, running correlation decomposed each step, N 256",
            "D",
            wide,
            lambda size: filtered(256, size, "ema"),
        ),
        ("effective rank, D 512", "N", doubled(2500, 3), lambda size: ranked(size, 512)),
        ("effective rank, N 4,096", "D", wide, lambda size: ranked(4096, size)),
        ("monitor's reading, D 256", "N", n, lambda size: watched(size, 256)),
        ("monitor's reading, N 256", "D", doubled(256, 4), lambda size: watched(256, size)),
        ("kNN, 2,048 queries, F 128", "bank", doubled(12_500, 3), lambda size: nearest(size, 2048, 128)),
        ("kNN, bank 25,000, F 128", "queries", doubled(1024, 3), lambda size: nearest(25_000, size, 128)),
        ("kNN, bank 25,000, 2,048 queries", "F", doubled(128, 3), lambda size: nearest(25_000, 2048, size)),
        ("views, 32 px", "batch", doubled(128, 3), lambda size: viewed(size, 32)),
        ("views, batch 64", "px", doubled(32, 3), lambda size: viewed(64, size)),
    ]
    found = [grow(*case, repeats) for case in cases]
    counts = doubled(1024, 3)
    with tempfile.TemporaryDirectory() as home:
        for count in counts:
            encoded_images(Path(home) / str(count), count)
        for what, spec, memory in (
            ("JPEG files of 64 px, decoded batch by batch", f"folder:{home}/{{count}}/files", 0),
            ("Parquet of the same, kept encoded, decoded batch by batch", f"hf:{home}/{{count}}/table", 0),
            ("JPEG files of 64 px, decoded at the start", f"folder:{home}/{{count}}/files", IN_MEMORY),
        ):
            found.append(grow(f"opening and an epoch: {what}", "images", counts, partial(read, spec, memory), 1))
    return found
