"""Every format, loaded without rankgap, gives the features that `load_encoder` gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rankgap as rg
from rankgap.choices import FormatName
from rankgap.exporting.export import export_run
from tests.data.pictures import photograph
from tests.exporting.loading import load_all, snippet

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "loggers": (), "protocol": (), "accelerator": "cpu"}
RNG = np.random.default_rng(0)


def photographs(size: int) -> Any:
    return np.stack([np.asarray(photograph((size, size), which=k % 2)) for k in range(8)])


def deep(channels: int) -> Any:
    """(8, 24, 24, C) in [0, 1]."""
    return RNG.random((8, 24, 24, channels)).astype(np.float32)


# The images, and the options of training: every backbone, stem, number of channels and kind of value.
RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "resnet_tiny": (
        lambda: photographs(40),
        {"model": "resnet_tiny", "size": 32, "method": "byol", "save_best": "rank", "keep_every": 1},
    ),
    "resnet18 with a small stem": (lambda: photographs(32), {"model": "resnet18"}),
    "resnet18 with its own stem": (lambda: photographs(72), {"model": "resnet18", "size": 64}),
    "vit_tiny at 32 px": (lambda: photographs(32), {"model": "vit_tiny_patch16_224"}),
    "vit_tiny at 48 px": (lambda: photographs(48), {"model": "vit_tiny_patch16_224", "size": 48}),
    "grey": (lambda: photographs(32)[..., :1], {"model": "resnet18", "size": 64}),
    "12 bits": (lambda: (deep(1) * 3000 + 500).round().astype(np.uint16), {"model": "resnet_tiny"}),
    "5 channels of floats": (lambda: deep(5) * 4 - 1, {"model": "resnet_tiny"}),
}
Case = tuple[str, FormatName, bool]
FAST: list[Case] = [(name, to, False) for name in RUNS for to in ("timm", "safetensors", "hf")]
FAST += [("resnet_tiny", "onnx", False), ("12 bits", "onnx", True), ("5 channels of floats", "torch-export", True)]
SLOW: list[Case] = [
    ("resnet_tiny", "onnx", True),
    ("resnet_tiny", "torch-export", False),
    ("resnet18 with a small stem", "onnx", False),
    ("resnet18 with a small stem", "torch-export", True),
    ("resnet18 with its own stem", "onnx", True),
    ("resnet18 with its own stem", "torch-export", False),
    ("vit_tiny at 32 px", "onnx", True),
    ("vit_tiny at 32 px", "torch-export", False),
    ("vit_tiny at 48 px", "onnx", False),
    ("vit_tiny at 48 px", "torch-export", True),
    ("grey", "onnx", True),
]
LIMITS = {"onnx": 1e-4}  # of a difference; 1e-5 otherwise


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Trained runs, each when a test asks for it first."""
    home = tmp_path_factory.mktemp("runs")

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            images, options = RUNS[name]
            torch.manual_seed(0)
            self[name] = rg.train(images(), out=home / name.replace(" ", "-"), **SHORT | options).folder
            return self[name]

    return Runs()


def images_for(run: Path, inside: bool) -> Tensor:
    """Images (3, C, H, W) with the values that the run's images have."""
    kept = rg.load_encoder(run)
    shape = (3, len(kept.mean), 57, 80)
    if kept.levels is None:
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    if kept.levels.depth == "integer":
        return torch.randint(0, 4096, shape, dtype=torch.int32)
    return torch.rand(shape) * 5 - 1.5


def features(runs: Mapping[str, Path], cases: list[Case], home: Path) -> dict[Case, tuple[Tensor, Tensor]]:
    """The features of each case, by its snippet and by `load_encoder`."""
    folders, images = {}, {}
    for case in cases:
        name, to, inside = case
        made = export_run(runs[name], to=to, preprocessing=inside, out=home / f"{name}-{to}-{inside}")
        folders[case], images[made.folder] = made.folder, images_for(runs[name], inside)
    found = load_all(images, home)
    return {
        case: (found[folder], rg.load_encoder(runs[case[0]])(images[folder])) for case, folder in folders.items()
    }


@pytest.fixture(scope="module")
def fast(runs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[Tensor, Tensor]]:
    return features(runs, FAST, tmp_path_factory.mktemp("fast"))


@pytest.fixture(scope="module")
def slow(runs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[Tensor, Tensor]]:
    return features(runs, SLOW, tmp_path_factory.mktemp("slow"))


def check(pair: tuple[Tensor, Tensor], case: Case) -> None:
    found, expected = pair
    assert found.shape == expected.shape
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3  # the images matter
    assert float((found - expected).abs().max()) <= LIMITS.get(case[1], 1e-5) * max(
        1.0, float(expected.abs().max())
    )


@pytest.mark.parametrize("case", FAST, ids=str)
def test_the_features_are_those_of_load_encoder(fast: dict[Case, tuple[Tensor, Tensor]], case: Case) -> None:
    check(fast[case], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_so_are_those_of_every_graph(slow: dict[Case, tuple[Tensor, Tensor]], case: Case) -> None:
    check(slow[case], case)


def test_a_snippet_has_ten_lines_at_most(runs: Mapping[str, Path], tmp_path: Path) -> None:
    for to in ("timm", "safetensors", "hf"):
        folder = export_run(runs["resnet_tiny"], to=to, out=tmp_path / to, push=None).folder
        assert 5 <= len(snippet(folder).splitlines()) <= 10


def test_each_checkpoint_and_branch_has_its_own_weights(runs: Mapping[str, Path], tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"checkpoint": "best"},
        {"checkpoint": "epoch-0001"},
        {"branch": "target"},
    ]
    first_layers = []
    for k, each in enumerate(options):
        folder = export_run(runs["resnet_tiny"], to="safetensors", out=tmp_path / str(k), **each).folder
        weights = load_file(folder / "model.safetensors")
        expected = rg.load_encoder(runs["resnet_tiny"], **each).encoder.network.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        first_layers.append(weights["conv1.weight"])
    last, _, first, target = first_layers
    assert not torch.equal(last, first)
    assert not torch.equal(last, target)
