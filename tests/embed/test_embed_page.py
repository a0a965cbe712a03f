"""The page on embedding: its commands and its code, on a folder of photographs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rankgap.cli import main
from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train
from tests.data.pictures import pixels, write

PAGE = (Path(__file__).parents[2] / "docs" / "embed.md").read_text()


def test_the_page_on_embedding_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(24):
        write(tmp_path / "photos" / f"{k}.png", pixels((40, 40), seed=k))
    train(TrainConfig(data="folder:photos", epochs=1, batch_size=8, size=32, protocol=(), out="runs/photos"))
    for line in re.findall("^rankgap (.*)$", PAGE, flags=re.MULTILINE):
        assert main(line.split()) == 0
    names: dict[str, object] = {}
    for block in re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "embed.md", "exec"), names)
    assert len(names["table"]) == 24  # type: ignore[arg-type]
