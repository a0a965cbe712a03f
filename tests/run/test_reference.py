"""The reference spectrum of a design, from a run folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rankgap.errors import UserError
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.reference import spectrum_of_run
from rankgap.run.trainer import train


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.yaml"):
        spectrum_of_run(RunFolder(Path(".")))


@pytest.mark.parametrize(
    ("online", "target", "branch", "note"),
    [
        ("power:0.5", None, "target", ""),
        (None, "power:-0.5", "online", ""),
        ("log1p", "power:-0.5", "target", ", after power:-0.5"),
    ],
)
def test_a_run_gives_the_spectrum_of_what_its_filters_act_on(
    online: str | None, target: str | None, branch: str, note: str, tmp_path: Path
) -> None:
    config = TrainConfig(
        online=online,
        target=target,
        limit=64,
        epochs=1,
        batch_size=32,
        protocol=(),
        loggers=(),
        out=str(tmp_path / "a"),
    )
    train(config)
    folder = RunFolder(config.path)
    found = spectrum_of_run(folder)
    last = folder.spectra()[-1]
    assert found.name == f"a at step {last.step}{note}"
    assert (found.rows, found.columns) == (32, 256)
    assert torch.equal(found.x, getattr(last, f"spectrum_{branch}") / math.sqrt(32))
    if branch == "target" and not note:  # batch-normed: the columns' mean square is 1
        assert float(found.x.square().sum()) == pytest.approx(256, rel=0.01)
    folder.spectra_file.unlink()
    with pytest.raises(UserError, match="has no spectra yet"):
        spectrum_of_run(folder)
