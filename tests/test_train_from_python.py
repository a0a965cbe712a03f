"""Training from Python, end to end on digits in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import rankgap as rg
from rankgap.cli import main
from rankgap.data import load_data
from rankgap.errors import InterruptedRunError, UserError
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.trainer import train

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 128, "loggers": ()}

NO_FLIP = {
    f"views.{k}.{name}": value
    for k in range(2)
    for name, value in {"flip": 0, "solarize_p": 0, "blur_p": 0, "scale": [0.5, 1.0]}.items()
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    first, test = load_data("digits")
    assert test is not None
    one, other = first.batch(range(len(first))), test.batch(range(len(test)))
    assert one.labels is not None
    assert other.labels is not None
    return {
        "images": one.images.permute(0, 2, 3, 1).numpy(),
        "labels": [f"digit {label}" for label in one.labels.tolist()],
        "test": other.images,
        "test_labels": [f"digit {label}" for label in other.labels.tolist()],
    }


def test_images_from_memory_train_as_the_same_images_by_name(digits: dict[str, Any], tmp_path: Path) -> None:
    run = rg.train(**digits, **SHORT, out=tmp_path / "given")
    named = train(TrainConfig(**SHORT, settings=NO_FLIP, out=str(tmp_path / "named")))
    again = rg.train(**digits, **SHORT, settings=NO_FLIP, out=tmp_path / "as_named")
    assert run.folder == tmp_path / "given"
    assert run.results == RunFolder(run.folder).results()
    assert run.results["knn"] > 0.5
    assert again.results["erank_target"] == pytest.approx(named["erank_target"], rel=1e-5)
    assert again.results["knn"] == pytest.approx(named["knn"], abs=0.01)
    features = run.encoder(digits["images"][:5])
    assert features.shape == (5, 128)
    assert torch.equal(features, rg.load_encoder(run.folder)(digits["images"][:5]))


def test_a_module_of_one_s_own_is_trained_in_place_and_loaded_again(
    digits: dict[str, Any], tmp_path: Path
) -> None:
    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = rg.train(digits["images"], model=network, method="byol", **SHORT, out=tmp_path / "own")
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    expected = run.encoder(digits["images"][:4])
    assert expected.shape == (4, 8 * 4 * 4)
    assert torch.equal(rg.load_encoder(run.folder, model=Network())(digits["images"][:4]), expected)
    with pytest.raises(
        UserError, match=r"a model of your own, Network, .* rankgap.load_encoder\(RUN, model=...\)"
    ):
        rg.load_encoder(run.folder)
    with pytest.raises(UserError, match="holds another model"):
        rg.load_encoder(run.folder, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 128)))


def test_the_commands_say_what_they_cannot_build_or_read_again(
    digits: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rg.train(digits["images"], model=Network(), **SHORT, out=tmp_path / "own")
    rg.train(digits["images"], **SHORT, out=tmp_path / "given")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "own")]) == 2
    assert "model of your own, Network" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "given")]) == 2
    said = capsys.readouterr().err
    assert "passed from Python" in said
    assert "--data" in said
    assert main(["evaluate", str(tmp_path / "given"), "--data", "digits"]) == 0


def test_a_run_is_stopped_and_finished_off_the_main_thread(
    digits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rg.train(digits["images"], **SHORT, out=tmp_path / "whole")
    stopped: list[BaseException] = []

    class Stop(L.Callback):  # as a notebook's stop button
        def announce(self, plan: Any) -> None: ...

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 5

    def part() -> None:
        try:
            rg.train(digits["images"], **SHORT, out=tmp_path / "part")
        except InterruptedRunError as error:
            stopped.append(error)

    with monkeypatch.context() as patch:
        patch.setattr("rankgap.training.Progress", lambda title: Stop())
        thread = threading.Thread(target=part)
        thread.start()
        thread.join()
    assert len(stopped) == 1
    assert "interrupted at step 5 of 22; to finish it, repeat the call with out=" in str(stopped[0])
    done = rg.train(digits["images"], resume=True, out=tmp_path / "part")
    assert done.results["erank_target"] == whole.results["erank_target"]


def test_a_data_set_by_name_and_a_list_of_pictures_train_too(digits: dict[str, Any], tmp_path: Path) -> None:
    short = SHORT | {"epochs": 1, "batch_size": 64, "limit": 64, "protocol": ()}
    assert rg.train("digits", **short, out=tmp_path / "named").results["erank_target"] > 1
    pairs = [(torch.from_numpy(image).permute(2, 0, 1), 3) for image in digits["images"][:64]]
    run = rg.train(pairs, model="resnet_tiny", **short, out=tmp_path / "pairs")
    assert run.encoder(digits["images"][0]).shape == (128,)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epoch": 3}, "unknown keyword 'epoch': did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"epochs": "three"}, "epochs takes a whole number, got 'three'"),
        ({"data": "digits"}, "train takes no keyword data"),
        ({"model": "resnet_tinny"}, "did you mean 'resnet_tiny'"),
        ({"model": "vit_small_patch16_224.dino"}, r"names pretrained weights \(dino\): add --init timm"),
        ({"model": nn.Conv2d(1, 4, 3)}, r"one vector for each image, got shape \(1, 4, 6, 6\)"),
        ({"model": nn.Conv2d(3, 4, 3)}, "Conv2d does not take 1-channel images of 8 px"),
        ({"labels": [1]}, "1442 labels, one for each train image, got 1"),
        ({"images": "digits", "labels": [1]}, "has its own labels"),
        ({"images": "digit"}, "unknown data set 'digit'"),
        ({"images": torch.zeros(200, 1, 8, 8)}, "every value is 0 in image 0 and the others of the 200 images"),
        ({"images": torch.zeros(200, 1, 8, 8, dtype=torch.int64)}, "expected images of uint8, .* got int64"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_folder_is_made(
    digits: dict[str, Any], given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        rg.train(**({"images": digits["images"]} | given), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": Network().requires_grad_(False)}, "no parameter of model wants a gradient"),
        ({"model": Network}, "model must be a module or a timm name"),
        ({"test_labels": [1]}, "test_labels need test images"),
        ({"labels": torch.zeros(1442, 2)}, "expected one label for each train image"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    given: dict[str, Any], says: str, digits: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        rg.train(digits["images"], **given, **SHORT, out=tmp_path / "run")


def test_labels_beside_a_named_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has its own labels"):
        rg.train("digits", torch.zeros(3), **SHORT, out=tmp_path / "run")


def test_a_run_of_one_s_own_model_with_a_mask_is_loaded_again(digits: dict[str, Any], tmp_path: Path) -> None:
    class Masked(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), -torch.inf))

    run = rg.train(digits["images"], model=Masked(), **SHORT | {"epochs": 1}, out=tmp_path / "masked")
    assert run.encoder(digits["images"][:2]).isfinite().all()


def test_an_encoder_takes_what_training_took(digits: dict[str, Any], tmp_path: Path) -> None:
    stack = digits["images"][:, :, :, 0]  # (N, H, W)
    run = rg.train(stack, **SHORT | {"epochs": 1}, out=tmp_path / "run")
    expected = run.encoder(digits["images"][:6])
    pairs = [(image, 0) for image in digits["images"][:6]]
    for same in (stack[:6], torch.from_numpy(stack[:6]), pairs):
        assert torch.equal(run.encoder(same), expected)
