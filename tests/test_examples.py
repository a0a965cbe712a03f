"""The examples train for a few steps with the real libraries. `make test-examples` installs the peers."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import warnings
from pathlib import Path

import pytest
import torch

import rankgap as rg
from rankgap.cli import main
from rankgap.spectra import effective_rank

NEEDS = {
    "from_scratch": "torch",
    "plain_pytorch": "torch",
    "lightning_callback": "lightning",
    "lightly_simsiam": "lightly",
    "lightly_dino": "lightly",
    "lightly_ijepa": "lightly",
    "stable_pretraining_simsiam": "stable_pretraining",
    "stable_pretraining_ijepa": "stable_pretraining",
    "stable_pretraining_data2vec": "stable_pretraining",
    "huggingface_trainer": "transformers",
    "transformers_vjepa2": "transformers",
    "transformers_data2vec": "transformers",
    "torch_geometric_bgrl": "torch_geometric",
}
STEPS = {"lightly_dino": 4}  # of 12: each makes 320 rows of 65,536 logits
TOKENS = {"lightly_ijepa", "stable_pretraining_ijepa", "transformers_vjepa2"}


def test_every_example_is_run() -> None:
    files = {path.stem for path in (Path(__file__).parents[1] / "examples").glob("*.py")}
    assert files - {"digits", "photos"} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_trains_and_reads_both_branches(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: make test-examples")
    monkeypatch.chdir(tmp_path)
    steps = STEPS.get(name, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the peer libraries
        monitor = importlib.import_module(f"examples.{name}").main(steps=steps)
    assert monitor.step >= steps - 1
    assert len(monitor.history) >= 2
    assert all(math.isfinite(r.rank_difference) for r in monitor.history)
    assert not monitor.disabled
    assert not monitor.skipped  # rows pair in every one of them
    found = monitor.compute()
    assert found.erank_online > 1
    assert found.erank_target > 1
    assert found.eigenspace_alignment.isfinite().all()
    assert all((r.image_rank_target is not None) == (name in TOKENS) for r in monitor.history)
    assert all((r.usage is not None) == (name == "lightly_dino") for r in monitor.history)


@pytest.mark.parametrize("order", ["q1 y2 q2 y1", "q1 q2 y1 y2", "y1 y2 q1 q2"])
def test_bgrl_s_predictions_meet_the_targets_of_the_other_view(order: str) -> None:
    if importlib.util.find_spec("torch_geometric") is None:
        pytest.skip("torch_geometric is not installed: make test-examples")
    bgrl = importlib.import_module("examples.torch_geometric_bgrl")
    torch.manual_seed(0)
    model, (x, edges) = bgrl.BGRL(), bgrl.graph()
    with rg.RankMonitor(model, online="predictor", target="target_encoder", every=1, strict=True) as monitor:
        for _ in range(5):
            views = {number: bgrl.view(x, edges) for number in "12"}
            outputs = {}
            for name in order.split():
                encoder = model.online_encoder if name[0] == "q" else model.target_encoder
                outputs[name] = encoder(*views[name[1]])
                if name[0] == "q":
                    outputs[name] = model.predictor(outputs[name])
            loss = -torch.cosine_similarity(outputs["q1"], outputs["y2"]).mean()
            loss = loss - torch.cosine_similarity(outputs["q2"], outputs["y1"]).mean()
            loss.backward()
            read = monitor.history[-1]
            other, own = (effective_rank(outputs[name].detach()) for name in ("y2", "y1"))
            assert read.erank_target == pytest.approx(float(other), rel=1e-5)
            assert read.erank_target != pytest.approx(float(own), rel=1e-5)


def test_from_scratch_learns_digits(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.from_scratch").main(steps=40)
    before, after = (float(share) for share in re.findall(r"kNN ([\d.]+)%", capsys.readouterr().out))
    assert after > before + 5  # percentage points; 82.8 and 91.5 when this was written


def test_readings_reach_weights_and_biases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: make test-examples")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    short = ["--epochs", "1", "--batch-size", "64", "--limit", "128", "--rank-every", "1", "--protocol", "none"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", *short, "--loggers", "wandb", "--out", str(tmp_path / "run")]) == 0
    importlib.import_module("wandb").teardown()  # its service writes the file on its way out
    logs = [path.read_bytes() for path in (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(logs) == 1
    assert b"erank_target" in logs[0]
