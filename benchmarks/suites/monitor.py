"""The cost of watching: ten training steps with one reading of the ranks; the seconds are those of the reading."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

import rankgap as rg
from benchmarks.suites.timing import Row, Settings, seconds
from rankgap.run.presets import adapt
from rankgap.run.recipes import load_recipe
from rankgap.run.work import Work

BATCH, EVERY = 256, 10


def measure(settings: Settings) -> list[Row]:
    """SimSiam's step on `resnet_tiny` at 32 px, batch 256, with the preset for small work."""
    torch.manual_seed(0)
    method = rg.design("simsiam")
    work = Work(images=10_000, batch_size=BATCH, epochs=10, features=128)
    recipe, _ = adapt(load_recipe("cifar", method.body), method, work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = rg.build(method, backbone="resnet_tiny", heads=recipe)
    model = model.to(device).to(memory_format=torch.channels_last)
    views = rg.Views(recipe.views, 32, (0.5,) * 3, (0.25,) * 3).to(device)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> rg.Outputs:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs: rg.Outputs = model(views(images))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    # One hundredth would be lost in the noise of whole runs, so a reading is timed beside the ten steps.
    outputs = step()
    monitor, ours = rg.RankMonitor(), rg.RankMonitor(window=False)

    def spectra() -> None:
        ours.update(outputs.online, outputs.target)
        ours.batch_spectrum()

    readings: dict[str, Callable[[], object]] = {
        "RankMonitor": lambda: monitor.update(outputs.online, outputs.target),
        # A short run of our trainer keeps spectra as often as it reads ranks; a long one keeps them less often.
        "our trainer, ranks and spectra": spectra,
    }
    rows = []
    for what, reading in readings.items():
        reading()
        ratios = [1 + seconds(reading) / sum(seconds(step) for _ in range(EVERY)) for _ in range(settings.repeats)]
        ratio = statistics.median(ratios)
        rows.append(
            Row(
                what=f"{what}: {EVERY} steps and a reading",
                against=f"the {EVERY} steps",
                seconds=statistics.median(seconds(reading) for _ in range(settings.repeats)),
                ratio=ratio,
                spread=(min(ratios), max(ratios)),
                bar="1.02x the time at most",
                met=ratio <= 1.02,
            )
        )
    return rows
