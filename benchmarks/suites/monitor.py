"""What watching costs: the same training step alone, under a `RankMonitor`, and with our trainer's readings."""

from __future__ import annotations

from functools import partial

import torch

import rankgap as rg
from benchmarks.suites.timing import Row, in_turns
from rankgap.diagnosis import read
from rankgap.pairs import pair_spectrum
from rankgap.presets import Work, adapt
from rankgap.recipes import load_recipe

BATCH, STEPS = 256, 20  # two readings of a monitor that looks every tenth step


def measure(repeats: int) -> list[Row]:
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

    def train(*, reads: bool = False) -> None:
        for step in range(STEPS):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                outputs = model(views(images))
            optimizer.zero_grad()
            outputs.loss.backward()
            optimizer.step()
            if reads and step % 10 == 0:
                read(outputs.online[0], outputs.target[1], step)
                pair_spectrum(outputs.online.flatten(0, 1), outputs.target.flatten(0, 1))
        if device.type == "cuda":
            torch.cuda.synchronize()

    monitor = rg.RankMonitor(model, online="online_map", target="target_map")

    def watched() -> None:
        with monitor:
            train()

    # A short run of ours keeps spectra as often as it reads ranks; a long one less often.
    others = {
        "RankMonitor, every 10 steps": watched,
        "the trainer's readings and spectra": partial(train, reads=True),
    }
    rows = []
    for what, other in others.items():
        plain, ratio, spread = in_turns(train, other, repeats)
        rows.append(
            Row(
                what=f"{what}: time of {STEPS} steps",
                against="without",
                seconds=plain * ratio,
                ratio=ratio,
                spread=spread,
                bar="1.02x the time at most",
                met=ratio <= 1.02,
            )
        )
    return rows
