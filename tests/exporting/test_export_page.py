"""The page on export: its code runs from top to bottom."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rankgap as rg
from tests.data.pictures import photograph

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def test_the_page_on_export_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    images = np.stack([np.asarray(photograph((72, 72), which=k % 2)) for k in range(8)])
    short: dict[str, Any] = {"epochs": 1, "batch_size": 4, "loggers": (), "protocol": (), "accelerator": "cpu"}
    rg.train(images, model="test_vit", size=64, out="runs/photos", **short)
    blocks = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="the run is", category=UserWarning
        )  # so short a run learns little
        for block in blocks:
            exec(compile(block, "export.md", "exec"), names)
    assert len(blocks) >= 4
    expected = rg.load_encoder("runs/photos")(names["images"])
    torch.testing.assert_close(names["features"], expected, rtol=0, atol=1e-5)
    sys.modules.pop("encoder")
