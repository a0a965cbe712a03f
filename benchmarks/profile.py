"""The time of a training step by kind of operation.

    python -m benchmarks.profile [--backbone resnet_tiny] [--batch 256] [--compile]

The table comes from torch's profiler over some steps of SimSiam on random images of 32 px in memory, with our
trainer's module in a plain loop. Below it are two lower bounds: the operations over the rate of a large product,
and the bytes that operations read and write (as if nothing stayed in a cache) over the rate of a large copy.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rankgap as rg
from benchmarks.machine import machine, matrix_rate
from benchmarks.suites.step import Case, bare_step, our_side, work_of_a_step
from benchmarks.suites.timing import seconds
from rankgap.run.module import SelfSupervised
from rankgap.run.optimizer import build_optimizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 5
# An operation belongs to the first kind with a word that occurs in its name.
KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution": ("convolution", "mkldnn_conv"),
    "batch norm, backward": ("batch_norm_backward",),
    "batch norm": ("batch_norm",),
    "compiled kernels": ("graph_", "triton_", "CompiledFunction"),
    "linear": ("aten::mm", "addmm", "bmm", "linear"),
    "optimiser": ("_fused_sgd", "_foreach", "Optimizer"),
    "crop and flip": ("grid_sampler",),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::stack", "aten::fill_"),
    "activations and sums": ("threshold_backward", "aten::add", "relu", "clamp", "aten::mul", "aten::div"),
}


def kind_of(name: str) -> str:
    """The kind of an operation."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "all else")


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations take and return; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the bytes of one operation."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def prepared(backbone: str, batch: int) -> tuple[SelfSupervised, Tensor, Callable[[], None]]:
    """Our module, a batch of images, and a training step on them."""
    module, data, _ = our_side(Case(backbone, batch, 2, 0, 0), rg.design("simsiam"))
    module.to(DEVICE)
    images = data.images.batch(range(batch)).images.to(DEVICE)
    return module, images, bare_step(module, images, build_optimizer(module.model, module.optimizer))


def floors(backbone: str, batch: int) -> str:
    """The milliseconds that a step's operations and its bytes take at the machine's rates."""
    module, images, step = prepared(backbone, batch)
    step()
    with Traffic() as traffic:
        step()
    flops, rate = work_of_a_step(module, images), matrix_rate()
    large = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)

    def copied() -> None:
        large.clone()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    copied()
    bandwidth = 2 * large.numel() / statistics.median(seconds(copied) for _ in range(7))
    return (
        f"floors: {flops / 1e12:.3f} Tflop at {rate / 1e12:.2f} Tflop/s, {1000 * flops / rate:.0f} ms; "
        f"{traffic.bytes / 1e9:.2f} GB at {bandwidth / 1e9:.1f} GB/s, {1000 * traffic.bytes / bandwidth:.0f} ms"
    )


def measure(backbone: str, batch: int, *, compiled: bool) -> tuple[Counter[str], float]:
    """The milliseconds per step by kind, and in total."""
    module, _, step = prepared(backbone, batch)
    if compiled:
        module.model.encoder().compile(fullgraph=True)
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            step()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        micros = event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total
        times[kind_of(event.key)] += micros / 1000 / STEPS
    return times, times.total()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet_tiny")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="compile the encoder")
    given = parser.parse_args()
    times, total = measure(given.backbone, given.batch, compiled=given.compile)
    print(f"{machine()}\n\n| kind | ms a step | share |\n|---|--:|--:|")
    for kind, milliseconds in times.most_common():
        print(f"| {kind} | {milliseconds:.1f} | {milliseconds / total:.0%} |")
    print(f"| in all | {total:.1f} | |\n\n{floors(given.backbone, given.batch)}")


if __name__ == "__main__":
    main()
