"""The reference spectrum of a design, from a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankgap.errors import UserError
from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train
from rankgap.theory.design import reference_spectrum

# Moved here from tests/theory/test_design.py: the `reference_spectrum` of `theory` no longer reads run folders.


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no run folder: it has no config\.yaml"):
        reference_spectrum(".")


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
        protocol="none",
        loggers="none",
        out=str(tmp_path / "a"),
    )
    train(config)
    found = reference_spectrum(str(tmp_path / "a"))
    last = config.folder.spectra()[-1]
    assert found.name == f"a at step {last.step}{note}"
    assert (found.rows, found.columns) == (64, 256)
    expected = torch.tensor(getattr(last, branch), dtype=torch.float64) / 8
    assert torch.equal(found.x, expected)
    if branch == "target" and not note:  # batch-normed: the columns' mean square is 1
        assert float(found.x.square().sum()) == pytest.approx(256, rel=0.01)
    config.folder.spectra_file.unlink()
    with pytest.raises(UserError, match="has no spectra yet"):
        reference_spectrum(str(tmp_path / "a"))
