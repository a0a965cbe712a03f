"""Run folders that earlier releases wrote stay readable, from 0.2 on.

`folder_0_2/run` was written by rankgap 0.2.0; `features.json` beside it holds the features that its encoders gave
then. It is never written again: a version that cannot read it breaks a promise. When a release changes what a run
folder holds, `python -m tests.run.test_earlier_folders` writes another one with the installed version.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import rankgap as rg
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.run.beat import last_beat
from rankgap.run.folder import RunFolder
from rankgap.run.saved import FORMAT
from rankgap.spectra.pair import SIDES

FOLDERS = sorted(Path(__file__).parent.glob("folder_*"))
IMAGES = 4  # digits, whose features were kept
# BYOL, because it has a teacher and a predictor; with a filter, so that maps of both branches have options.
FLAGS = ["--method", "byol", "--online", "predictor", "--target", "power:-0.5", "--backbone", "test_efficientnet"]
FLAGS += ["--settings", "projector.widths=[16,16]", "online.predictor.widths=[16]", "--data", "digits"]
FLAGS += ["--limit", "128", "--batch-size", "32", "--epochs", "1", "--rank-every", "1", "--loggers", "none"]
FLAGS += ["--accelerator", "cpu", "--precision", "32-true", "--threads", "1", "--size", "32"]


def features(run: Path) -> dict[str, list[list[float]]]:
    """Features of the first training digits by both branches' encoders."""
    digits = load_data("digits")[0].batch(range(IMAGES)).images
    found = {side: rg.load_encoder(run, branch=side)(digits) for side in SIDES}
    return {side: [[float(f"{x:.7g}") for x in row] for row in values] for side, values in found.items()}


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder that was written by an earlier release."""
    return Path(shutil.copytree(request.param, tmp_path / "kept"))


def test_there_is_one_of_each_format() -> None:
    formats = {RunFolder(path / "run").saved().format for path in FOLDERS}
    assert formats == set(range(2, FORMAT + 1))


def test_it_was_written_by_the_release_that_its_name_says(kept: Path, request: pytest.FixtureRequest) -> None:
    release = RunFolder(kept / "run").saved().versions["rankgap"]
    assert f"folder_{'_'.join(release.split('.')[:2])}" in request.node.name


def test_its_configuration_says_what_was_trained(kept: Path) -> None:
    saved = RunFolder(kept / "run").saved()
    assert saved.title == "byol online predictor target power:-0.5"
    assert (saved.run.limit, saved.run.seed, saved.model.size, saved.model.channels) == (128, 0, 32, 1)
    assert saved.method().target == ("power:-0.5",)
    assert saved.recipe.projector.widths == (16, 16)
    assert saved.work.steps == 4
    assert saved.data is not None
    assert saved.data.train.images == 1442


def test_its_readings_spectra_and_results_are_read(kept: Path) -> None:
    folder = RunFolder(kept / "run")
    with folder.metrics_file.open() as file:
        rows = list(csv.DictReader(file))
    metrics, spectra = folder.metrics(), folder.spectra()
    assert metrics == {name: [float(row[name]) for row in rows] for name in rows[0]}
    assert metrics["step"] == [pair.step for pair in spectra] == [0, 1, 2, 3]
    for side in SIDES:  # a spectrum's rank is the one that was read from the outputs
        ranks = []
        for pair in spectra:
            energy = getattr(pair, f"spectrum_{side}").square()
            ranks.append(float(torch.distributions.Categorical(energy).entropy().exp()))
        assert ranks == pytest.approx(metrics[f"erank_{side}"], rel=1e-4)
    written = json.loads((folder.path / "results.json").read_text())
    assert folder.results() == written
    verdict = folder.verdict()
    assert verdict is not None
    assert verdict.features is not None
    assert (verdict.kind, verdict.features.rank) == ("healthy", written["erank_features"])
    beat = last_beat(folder)
    assert beat is not None
    assert (beat.state, beat.step) == ("finished", 4)


def test_its_encoders_give_the_features_that_they_gave(kept: Path) -> None:
    then = json.loads((kept / "features.json").read_text())
    now = features(kept / "run")
    for side in SIDES:
        assert_close(torch.tensor(now[side]), torch.tensor(then[side]), rtol=1e-5, atol=1e-5)
    assert then["online"] != then["target"]


def test_the_commands_take_it(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = str(kept / "run"), kept / "page.html"
    then = RunFolder(kept / "run").results()
    for command in (["compare", run], ["report", run, "--out", str(page)], ["evaluate", run, "--protocol", "knn"]):
        assert main(command) == 0
    assert "byol" in capsys.readouterr().out
    assert RunFolder(kept / "run").results()["knn"] == pytest.approx(then["knn"], abs=0.01)
    assert "byol online predictor target power:-0.5" in page.read_text()


def test_it_can_be_resumed(kept: Path) -> None:
    folder = RunFolder(kept / "run")
    before = folder.metrics()
    assert main(["train", "--resume", "--epochs", "2", "--out", str(folder.path)]) == 0
    after = folder.metrics()
    assert after["step"] == list(range(8))
    assert {name: values[:4] for name, values in after.items()} == before
    assert folder.load_checkpoint().step == 8


def write() -> None:
    """Write the folder of the installed version."""
    release = "_".join(rg.__version__.split(".")[:2])
    home = Path(__file__).parent / f"folder_{release}"
    home.mkdir()
    os.chdir(home)
    socket.gethostname = lambda: "elsewhere"  # not the name of the machine
    assert main(["train", *FLAGS, "--out", "run"]) == 0
    Path("features.json").write_text(json.dumps(features(Path("run"))))


if __name__ == "__main__":
    write()
