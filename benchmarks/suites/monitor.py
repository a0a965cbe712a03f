"""The cost of watching at the automatic cadence: its share of the time of training, its memory, and its start.

One hundredth would be lost in the noise of whole trainings, so a reading is timed between steps, and the hooks on
modules that do nothing else. The cadence follows from both, as in `watch.cadence`.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import rankgap as rg
from benchmarks.suites.scale import peak_memory
from benchmarks.suites.timing import Row, Settings, seconds
from rankgap.run.presets import adapt
from rankgap.run.recipes import load_recipe
from rankgap.run.work import Work
from rankgap.watch.cadence import SHARE, interval

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEMORY = 450  # MiB
FIRST = "rankgap.RankMonitor().update(torch.randn(64, 128), torch.randn(64, 128))"
STARTS = (  # what, code, seconds above importing torch
    ("import rankgap", "import rankgap", 0.05),
    ("import rankgap and a first reading", f"import rankgap; {FIRST}", 0.3),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training that is watched.

    Args:
        what: its name.
        step: a training step; returns what both branches gave.
        monitor: makes the monitor.
        calls: calls of hooked modules in a step.
        every: steps between readings; None for the automatic cadence.
    """

    what: str
    step: Callable[[], tuple[Any, Any]]
    monitor: Callable[[], rg.RankMonitor]
    calls: int
    every: int | None = None


def measure(settings: Settings) -> list[Row]:
    """Our own trainer's step, an I-JEPA on tokens, and lightly's DINO if it is installed; then the start."""
    makers = [our_trainer, token_prediction]
    if importlib.util.find_spec("lightly"):
        makers.append(lightly_dino)
    hook = seconds_of_a_hook()
    watching = (watched(make(), hook, settings.repeats) for make in makers)
    return [*watching, *(start(*each, settings.repeats) for each in STARTS)]


def watched(training: Training, hook: float, repeats: int) -> Row:
    """A training's share of time for watching, and what a step that is read adds to its peak memory."""
    training.step()
    bare = peak_memory(training.step)
    with training.monitor() as monitor:
        memory = peak_memory(partial(read_step, training, monitor)) - bare
    outputs = training.step()
    monitor = training.monitor()
    monitor.update(*outputs)
    ratios, readings = [], []
    for _ in range(repeats):
        step, reading = seconds(training.step), seconds(partial(monitor.update, *outputs))
        every = training.every or max(math.ceil(reading / (SHARE * step)), 1)
        ratios.append(1 + reading / every / step + training.calls * hook / step)
        readings.append(reading)
    ratio = statistics.median(ratios)
    return Row(
        what=f"{training.what}: a reading every {every} steps; {max(memory, 0):.0f} MiB more at its peak",
        against=f"the steps, {step:.2g} s each",
        seconds=statistics.median(readings),
        ratio=ratio,
        spread=(min(ratios), max(ratios)),
        bar=f"1.01x the time, {MEMORY} MiB",
        met=ratio <= 1.01 and memory <= MEMORY,
    )


def read_step(training: Training, monitor: rg.RankMonitor) -> None:
    """A step that is read: by hooks, or by hand."""
    outputs = training.step()
    if not training.calls:
        monitor.update(*outputs)
    assert len(monitor.history) == 1


def seconds_of_a_hook() -> float:
    """What a hooked call adds to a step that is not read: 1,000 calls of modules that do nothing else."""
    modules = nn.ModuleDict({"predictor": nn.Identity(), "projector": nn.Identity()})
    x = torch.randn(8, 8, requires_grad=True)

    def step() -> None:
        for _ in range(500):
            (modules["projector"](x) + modules["predictor"](x * 1)).sum().backward()

    step()
    bare = min(seconds(step) for _ in range(5))
    with rg.RankMonitor(modules, every=10**9) as monitor:
        monitor.cadence.due = lambda step: False  # type: ignore[method-assign]
        return max(min(seconds(step) for _ in range(5)) - bare, 0) / 1000


def trained(parameters: Any, loss: Callable[[], tuple[Tensor, Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    """A step of AdamW on a loss, which also returns what both branches gave."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> tuple[Any, Any]:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            value, online, target = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return online, target

    return step


def our_trainer() -> Training:
    """SimSiam's step on `resnet_tiny` at 32 px, batch 256, with the preset for small work."""
    torch.manual_seed(0)
    method = rg.design("simsiam")
    work = Work(images=10_000, batch_size=256, epochs=10, features=128)
    recipe, _ = adapt(load_recipe("cifar", method.body), method, work)
    model = rg.build(method, backbone="resnet_tiny", heads=recipe).to(DEVICE).to(memory_format=torch.channels_last)
    views = rg.Views(recipe.views, 32, (0.5,) * 3, (0.25,) * 3).to(DEVICE)
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, device=DEVICE)

    def loss() -> tuple[Tensor, Any, Any]:
        out = model(views(images))
        return out.loss, out.online, out.target

    return Training(
        what="our trainer, SimSiam on resnet_tiny, batch 256",
        step=trained(model.parameters(), loss),
        monitor=partial(rg.RankMonitor, strict=True, layout="v n d", window=False),
        calls=0,
        every=interval(work.steps),
    )


def token_prediction() -> Training:
    """The tensors of an I-JEPA: a ViT-tiny of 4 px patches at 32 px, batch 64, whose predictor sees all tokens."""
    torch.manual_seed(0)
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=0, global_pool="", class_token=False
    ).to(DEVICE)
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    predictor = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, dropout=0).to(DEVICE)
    images = torch.randn(64, 3, 32, 32, device=DEVICE)

    def loss() -> tuple[Tensor, Any, Any]:
        p, t = predictor(encoder(images)), teacher(images)
        return (p - t).square().mean(), p, t

    return Training(
        what="I-JEPA's tokens, ViT-tiny, 64 x 64 tokens",
        step=trained([*encoder.parameters(), *predictor.parameters()], loss),
        monitor=partial(rg.RankMonitor, None, predictor, teacher, layout="b t d", pair="same", strict=True),
        calls=2,
    )


def lightly_dino() -> Training:
    """Lightly's DINO with its default head of 65,536 prototypes: resnet18 at 32 px, batch 64, 2 + 6 crops."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(torchvision.models.resnet18(num_classes=512), DINOProjectionHead(512)).to(DEVICE)
        for _ in range(2)
    )
    teacher.requires_grad_(False).load_state_dict(student.state_dict())
    criterion = DINOLoss().to(DEVICE)
    crops = [torch.randn(64, 3, 32, 32, device=DEVICE) for _ in range(8)]

    def loss() -> tuple[Tensor, Any, Any]:
        t, s = [teacher(crop) for crop in crops[:2]], [student(crop) for crop in crops]
        return criterion(t, s), s, t

    def seen(logits: Tensor) -> Tensor:
        return torch.softmax(logits / criterion.student_temp, -1)

    return Training(
        what="lightly's DINO, 65,536 prototypes, batch 64, 2 + 6 crops",
        step=trained(student.parameters(), loss),
        monitor=partial(rg.RankMonitor, None, student[1], teacher[1], then=(seen, seen), strict=True),
        calls=10,
    )


def start(what: str, code: str, bar: float, repeats: int) -> Row:
    """Seconds that some code takes in a new process, above importing torch."""
    more = []
    for _ in range(repeats):
        bare, ours = (
            seconds(lambda each=each: subprocess.run([sys.executable, "-c", each], check=True))  # type: ignore[misc]
            for each in ("import torch", f"import torch; {code}")
        )
        more.append(ours - bare)
    found = statistics.median(more)
    return Row(
        what=f"{what}, above import torch",
        against="",
        seconds=found,
        ratio=None,
        spread=(min(more), max(more)),
        bar=f"{bar} s",
        met=found <= bar,
    )
