"""The walks of CONTRIBUTING.md: each is short, and its code works as the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankgap.cli import main
from rankgap.data import load_data
from rankgap.evaluate.scores import SCORES
from rankgap.model.maps import MAPS
from rankgap.model.methods import METHODS
from rankgap.run.folder import RunFolder

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
WALKS = dict(re.findall(r"^## Add a ([\w ]+).*?\n(.*?)(?=^## )", PAGE, flags=re.DOTALL | re.MULTILINE))
FLAGS = ["--epochs", "1", "--batch-size", "64", "--limit", "128", "--loggers", "none", "--protocol", "none"]


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """The registries, as they were."""
    all_of_them: tuple[dict[str, Any], ...] = (METHODS, MAPS, SCORES)
    before = [dict(registry) for registry in all_of_them]
    yield
    for registry, held in zip(all_of_them, before, strict=True):
        registry.clear()
        registry.update(held)


@pytest.fixture
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The code of a walk in a file of one's own."""
    (block,) = re.findall(r"```python\n(.*?)```", WALKS[request.param], flags=re.DOTALL)
    file = tmp_path / f"{request.param.replace(' ', '_')}.py"
    file.write_text(block)
    return str(file)


def test_there_are_four_walks_of_fewer_than_twenty_lines() -> None:
    assert WALKS.keys() == {"method", "map", "score", "data source"}
    for name, walk in WALKS.items():
        lines = [line for line in walk.splitlines() if line and not line.startswith("```")]
        assert len(lines) < 20, name


def test_the_files_that_the_page_names_exist() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)[\w/.]*)`", PAGE):
        assert (root / name).exists(), name
    for name in re.findall(r"`((?:evaluate|model|run)/\w+\.py)`", PAGE):
        assert (root / "src" / "rankgap" / name).is_file(), name
    targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert {*re.findall(r"make ([\w-]+)", PAGE)} <= {*targets}


@pytest.mark.parametrize("mine", ["method"], indirect=True)
def test_a_new_row_trains(mine: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "--import", mine, "--method", "mine", *FLAGS, "--out", str(out)]) == 0
    assert RunFolder(out).saved().method() == METHODS["mine"]
    assert RunFolder(out).metrics()["rank_difference"]


@pytest.mark.parametrize("mine", ["map"], indirect=True)
def test_a_new_map_trains_with_its_option(mine: str, tmp_path: Path) -> None:
    flags = ["--online", "soft", "--settings", "online.soft.share=0.2", "--out", str(tmp_path / "run")]
    assert main(["train", "--import", mine, *flags, *FLAGS]) == 0
    options = RunFolder(tmp_path / "run").saved().recipe.online["soft"]
    assert options == type(MAPS["soft"].options)(share=0.2)


@pytest.mark.parametrize("mine", ["score"], indirect=True)
def test_a_new_score_is_shown(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *FLAGS, "--out", out]) == 0
    assert main(["score", out, "--images", "128", "--repeats", "2", "--all", "--import", mine]) == 0
    assert "top share is read beside the ranks (You 2026)." in " ".join(capsys.readouterr().out.split())
    assert SCORES["top share"].function(torch.eye(4)) == pytest.approx(0.25)


@pytest.mark.parametrize("mine", ["data source"], indirect=True)
def test_a_new_data_source_opens(mine: str, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "stack.npy", stack)
    names: dict[str, Any] = {}
    exec(Path(mine).read_text(), names)
    train, test = load_data(names["open_stack"](str(tmp_path / "stack.npy")), size=8)
    assert test is None
    assert torch.equal(train.batch(range(6)).images, torch.from_numpy(stack).permute(0, 3, 1, 2))
