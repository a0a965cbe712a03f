"""A run on two devices is the run on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankgap.cli import main
from rankgap.model.backbones import build_encoder
from rankgap.run.devices import find_workers
from rankgap.run.folder import RunFolder
from tests.processes import needs_distributed

FLAGS = ["--method", "swav", "--limit", "128", "--batch-size", "64", "--epochs", "1", "--rank-every", "1"]
FLAGS += ["--precision", "32-true", "--accelerator", "cpu", "--loggers", "none", "--protocol", "none"]
# Views that no random number changes; a queue in use and an encoder that is trained from the second step on.
STILL = ["scale=[1,1]", "ratio=[1,1]", "flip=0", "jitter_p=0", "grey_p=0"]
SETTINGS = ["target.sinkhorn.queue=64", "target.sinkhorn.queue_epochs=0", "optimizer.freeze_encoder_epochs=0.5"]
SETTINGS += [f"views.{view}.{still}" for view in (0, 1) for still in STILL]


def queue(folder: RunFolder) -> Tensor:
    """SwAV's queue in a checkpoint, a number for each embedding, in ascending order."""
    kept: Tensor = folder.load_checkpoint().model["target_map.0.queue"]
    return kept.sum(-1).sort().values


@needs_distributed
def test_what_a_run_logs_does_not_depend_on_the_number_of_devices(tmp_path: Path) -> None:
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    torch.save(build_encoder("resnet_tiny", channels=1, size=8).network.state_dict(), tmp_path / "start.pt")
    given = ["train", *FLAGS, "--init", str(tmp_path / "start.pt"), "--settings", *SETTINGS]
    assert main([*given, "--out", str(one.path)]) == 0
    # The second run also computes its activations again, and must not count their statistics twice.
    more = ["--devices", "2", "--grad-checkpointing", "--out", str(two.path)]
    command = [sys.executable, "-m", "rankgap", *given, *more]
    subprocess.run(command, check=True, capture_output=True)
    assert two.results()["start"] == one.results()["start"]  # one process scores it
    wanted, found = one.metrics(), two.metrics()
    assert wanted.keys() == found.keys()
    assert len(wanted["loss"]) == 2
    for name, column in wanted.items():
        assert found[name] == pytest.approx(column, rel=1e-3, abs=1e-6), name
    first, second = one.load_checkpoint().model, two.load_checkpoint().model
    frozen = "online.prototypes.weight"  # in the only epoch: weight decay must not move it either
    assert torch.equal(first[frozen], second[frozen])
    for trained in ("conv1.weight", "layer1.0.bn1.running_mean", "layer4.0.bn2.num_batches_tracked"):
        key = f"online.encoder.network.{trained}"
        assert_close(second[key], first[key], rtol=1e-3, atol=1e-5)
    assert queue(two).shape == (2, 64)
    assert_close(queue(two), queue(one), rtol=1e-3, atol=1e-3)  # the embeddings of both processes


@pytest.mark.parametrize(
    ("asked", "device", "in_memory", "expected"),
    [
        (None, "cpu", False, 0),  # where they would take the network's cores
        (None, "cuda", False, 6),
        (None, "cuda", True, 0),
        (3, "cpu", True, 3),
        (0, "cuda", False, 0),
    ],
)
def test_workers_are_for_files_and_devices_that_leave_cores_free(
    asked: int | None, device: str, in_memory: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert find_workers(asked, torch.device(device), in_memory=in_memory) == expected
