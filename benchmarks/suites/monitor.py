"""What watching costs: ten training steps, and a reading of their ranks; the seconds are the reading's."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

import rankgap as rg
from benchmarks.suites.timing import Row, Settings, seconds
from rankgap.run.presets import Work, adapt
from rankgap.run.recipes import load_recipe
from rankgap.spectra.pair import pair_spectrum
from rankgap.watch.reading import read

BATCH, EVERY = 256, 10


def measure(settings: Settings) -> list[Row]:
    """SimSiam's step on `resnet_tiny` at 32 px, batch 256, as the preset for small work has it."""
    torch.manual_seed(0)
    method = rg.design("simsiam")
    work = Work(images=10_000, batch_size=BATCH, epochs=10, features=128)
    recipe, _ = adapt(load_recipe("cifar", method.body), method, work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = rg.build(method, backbone="resnet_tiny", heads=recipe.heads)
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

    # A hundredth is lost in the noise of whole runs: a reading is timed beside the steps that pay for it.
    monitor = rg.RankMonitor()
    outputs = step()
    online, target = outputs.online[0], outputs.target[1]
    every_view = outputs.online.flatten(0, 1), outputs.target.flatten(0, 1)
    readings: dict[str, Callable[[], object]] = {
        "RankMonitor": lambda: monitor.update(online, target),
        # A short run of ours keeps spectra as often as it reads ranks; a long one less often.
        "our trainer, ranks and spectra": lambda: (read(online, target, 0), pair_spectrum(*every_view)),
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
