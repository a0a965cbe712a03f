from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import rankgap as rg
from rankgap.errors import UserError


def lines(figure: Figure) -> dict[str, list[float]]:
    drawn = figure.axes[0].get_lines()[:2]
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in drawn}


def test_a_monitor_and_its_history_are_drawn(tmp_path: Path) -> None:
    monitor = rg.RankMonitor()
    for seed in range(4):
        z = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))
        monitor.update(z**3, z)
    figure = rg.plot(monitor, tmp_path / "ranks.png")
    with Image.open(tmp_path / "ranks.png") as picture:
        assert picture.width > 500
    assert lines(figure) == lines(rg.plot(monitor.history))
    assert lines(figure)["target"] == [r.erank_target for r in monitor.history]
    assert lines(figure)["online"] == [r.erank_online for r in monitor.history]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readings to plot yet"):
        rg.plot(rg.RankMonitor())
    with pytest.raises(UserError, match="not a run folder"):
        rg.plot(tmp_path)
