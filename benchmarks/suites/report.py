"""The cost of writing the report of ten runs, each with 40 snapshots at D = 256 and 2,000 readings."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.suites.timing import Row, Settings, seconds
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.plan import resolve
from rankgap.spectra.pair import pair_spectrum


def measure(settings: Settings) -> list[Row]:
    """Measure the seconds to write it, and its size."""
    from rankgap.show.report.page import write_report

    saved = resolve(TrainConfig(data="digits", backbone="resnet_tiny")).saved()
    generator = torch.Generator().manual_seed(0)
    pair = pair_spectrum(torch.randn(512, 256, generator=generator), torch.randn(512, 256, generator=generator))
    with tempfile.TemporaryDirectory() as home:
        folders = [RunFolder(Path(home) / f"run{i}") for i in range(10)]
        for folder in folders:
            folder.create()
            folder.write_config(saved)
            for step in range(40):
                folder.add_spectra(replace(pair, step=10 * step))
            rows = [f"{10 * i},{i / 4},0.5,{2 + i % 3},{3 + i % 5},{1 + i % 2}" for i in range(2000)]
            head = "step,epoch,loss,erank_online,erank_target,rank_difference"
            folder.metrics_file.write_text("\n".join([head, *rows]) + "\n")
        out = Path(home) / "report.html"
        times = sorted(seconds(lambda: write_report(folders, out)) for _ in range(settings.repeats))
        size = out.stat().st_size
    return [
        Row(
            what=f"report of ten runs ({size / 1e6:.1f} MB)",
            against="",
            seconds=times[len(times) // 2],
            ratio=None,
            spread=(times[0], times[-1]),
            bar="5 s and 6 MB at most",
            met=times[len(times) // 2] <= 5 and size <= 6e6,
        )
    ]
