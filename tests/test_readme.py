from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

import rankgap
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.filters.gains import GAINS
from rankgap.model.methods import METHODS
from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train
from tests.data.pictures import pixels, write

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
WATCH = (ROOT / "docs" / "watch.md").read_text()
EMBED = (ROOT / "docs" / "embed.md").read_text()
PASTED = re.findall(r"```py\n(.*?)```", WATCH, flags=re.DOTALL)  # into research code, which is not here


def test_the_readme_s_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(TrainConfig(data="digits", limit=64, epochs=1, batch_size=32, protocol=(), out="runs/photos"))
    images = load_data("digits")[0].batch(range(64)).images
    names = {"images": images, **dict(METHODS)}
    before, gains = dict(METHODS), dict(GAINS)
    try:
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    finally:
        METHODS.clear()
        METHODS.update(before)
        GAINS.clear()
        GAINS.update(gains)
    assert len(BLOCKS) >= 3


def test_the_page_on_watching_runs_from_top_to_bottom() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", WATCH, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "watch.md", "exec"), names)
    assert len(blocks) >= 2


def test_the_page_on_embedding_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(24):
        write(tmp_path / "photos" / f"{k}.png", pixels((40, 40), seed=k))
    train(TrainConfig(data="folder:photos", epochs=1, batch_size=8, size=32, protocol=(), out="runs/photos"))
    for line in re.findall("^rankgap (.*)$", EMBED, flags=re.MULTILINE):
        assert main(line.split()) == 0
    for block in re.findall(r"```python\n(.*?)```", EMBED, flags=re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(block, "embed.md", "exec"), names)
        assert len(names["table"]) == 24  # type: ignore[arg-type]


def test_what_is_pasted_into_research_code_has_the_monitor_s_options() -> None:
    calls = [node for block in PASTED for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    monitors = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "RankMonitor"]
    assert len(monitors) == WATCH.count("### ") >= 7
    for call in monitors:
        assert {word.arg for word in call.keywords} <= inspect.signature(rankgap.RankMonitor).parameters.keys()


def test_the_readme_begins_with_the_two_commands_and_shows_every_row() -> None:
    assert README.index("make demo") < README.index("make test") < README.index("## Watch")
    assert all(f"`{name}`" in README for name in METHODS)


def test_every_public_name_exists() -> None:
    assert set(rankgap.__all__) <= set(dir(rankgap))
    assert all(getattr(rankgap, name) is not None for name in rankgap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rankgap.nothing  # noqa: B018
