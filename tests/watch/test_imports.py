from __future__ import annotations

import subprocess
import sys

HEAVY = "lightning torchmetrics timm torchvision scipy sklearn matplotlib plotly PIL pydantic yaml transformers"
LIGHT = """
import sys
import rankgap.filters, rankgap.spectra, rankgap.watch
rankgap.RankMonitor()
print(*sys.modules)
"""


def test_watching_spectra_and_filters_need_torch_alone() -> None:
    run = subprocess.run([sys.executable, "-c", LIGHT], check=True, capture_output=True, text=True)
    loaded = {module.partition(".")[0] for module in run.stdout.split()}
    assert "torch" in loaded
    assert not loaded & set(HEAVY.split())
