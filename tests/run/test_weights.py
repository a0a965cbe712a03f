"""Pretrained weights from every source, fitted to an encoder as timm itself fits them."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import timm.models._hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.model.backbones import build_encoder
from rankgap.run.start import Start, start_from
from rankgap.run.weights import Weights, find_weights

State = dict[str, Any]
NAMES = "test_resnet", "test_vit"


def trained(name: str = "test_resnet", **options: Any) -> nn.Module:
    """A timm network whose every number is its own: batch-norm statistics, biases and embeddings included."""
    network: nn.Module = timm.create_model(name, **options)
    torch.manual_seed(1)
    for each in network.state_dict().values():
        if each.is_floating_point():
            each.uniform_(0.5, 1.5)
        else:
            each.fill_(7)
    return network


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def started(init: str, name: str = "test_resnet", **options: Any) -> Start:
    options = {"channels": 3, "size": 64} | options
    return start_from(find_weights(init, name), name, **options)


def counted(state: State) -> int:
    """The tensors that a note counts: all except batch norm's counts of batches."""
    return sum(not name.endswith("tracked") for name in state)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": each for name, each in state.items()}


def others(state: State) -> State:
    """Weights of the same names that are not the ones wanted."""
    return {name: torch.zeros_like(each) for name, each in state.items()}


LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "alone": (lambda s: s, ""),
    "state_dict": (lambda s: {"epoch": 3, "state_dict": s}, "key state_dict"),
    "model": (lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "key model"),
    "backbone": (lambda s: {"backbone": s}, "key backbone"),
    "student": (lambda s: {"student": prefixed(s, "module.backbone.")}, "key student, prefix module.backbone."),
    "teacher": (
        lambda s: {
            "student": prefixed(others(s), "module.backbone."),
            "teacher": prefixed(s, "module.backbone."),
            "args": argparse.Namespace(lr=1),
        },
        "key teacher, prefix module.backbone.",
    ),
    "ema": (lambda s: {"state_dict": others(s), "state_dict_ema": s}, "key state_dict_ema"),
    "module.": (lambda s: prefixed(s, "module."), "prefix module."),
    "encoder.": (lambda s: prefixed(s, "encoder."), "prefix encoder."),
    "backbone.": (lambda s: prefixed(s, "backbone."), "prefix backbone."),
    "network.": (lambda s: prefixed(s, "network."), "prefix network."),
    "first of two": (
        lambda s: prefixed(s, "encoder_q.") | prefixed(others(s), "encoder_k."),
        "prefix encoder_q.",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_s_layout_is_found_and_said(layout: str, tmp_path: Path) -> None:
    wrap, place = LAYOUTS[layout]
    network = trained()
    found = started(saved(wrap(network.state_dict()), tmp_path / "w.pt"))
    expected = trained(num_classes=0).state_dict()
    assert_close(found.encoder.network.state_dict(), expected, rtol=0, atol=0)
    said = found.notes[0]
    where = f" ({place})" if place else ""
    count = counted(expected)
    assert said.startswith(
        f"{count} of {count} tensors of the encoder from {tmp_path / 'w.pt'}{where}; left over: "
    )
    assert said.partition("prefix ")[2].partition(")")[0] + "fc.weight" in said


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_and_files_older_than_torch_s_zip_format_are_read(name: str, tmp_path: Path) -> None:
    state = trained(name).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    expected = trained(name, num_classes=0, img_size=160) if name == "test_vit" else trained(name, num_classes=0)
    for file in ("a.safetensors", "b.pth"):
        found = started(str(tmp_path / file), name, size=160)
        assert_close(found.encoder.network.state_dict(), expected.state_dict(), rtol=0, atol=0)


def by_timm(name: str, file: Path, **options: Any) -> State:
    """The network as timm's own loading of a file makes it."""
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **options)
    return dict(network.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_are_converted_as_timm_does(name: str, channels: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    found = started(saved(trained(name).state_dict(), file), name, channels=channels, size=160)
    expected = by_timm(name, file, in_chans=channels, num_classes=0)
    assert_close(dict(found.encoder.network.state_dict()), expected, rtol=0, atol=0)
    assert found.encoder(torch.zeros(2, channels, 160, 160)).shape == (2, found.encoder.features)


@pytest.mark.parametrize("size", [64, 224])
def test_a_vision_transformer_is_fitted_to_another_size_as_timm_does(size: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    wrapped = {"teacher": prefixed(dict(trained("test_vit").state_dict()), "module.")}
    torch.save(trained("test_vit").state_dict(), file)
    found = started(saved(wrapped, tmp_path / "dino.pth"), "test_vit", size=size)
    expected = by_timm("test_vit", file, img_size=size, num_classes=0)
    assert_close(dict(found.encoder.network.state_dict()), expected, rtol=0, atol=0)
    assert found.encoder(torch.zeros(2, 3, size, size)).shape == (2, found.encoder.features)


def test_windows_of_another_size_are_fitted(tmp_path: Path) -> None:
    name, options = "swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    network = timm.create_model(name, **options)
    weights = Weights(place="w", states={"": network.state_dict()})
    with pytest.raises(UserError, match="another architecture"):  # the run's network is wider, and has four stages
        start_from(weights, name, channels=3, size=128)
    whole = Weights(place="w", states={"": timm.create_model(name).state_dict()})
    assert start_from(whole, name, channels=3, size=128).notes[0].startswith("171 of 171 tensors")


class Hub:
    """A local folder in the place of the Hub: what `hf_hub_download` would fetch, in the Hub's layout."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.asked: list[tuple[str, str, str | None]] = []

    def __call__(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> str:
        self.asked.append((repo_id, filename, revision))
        if not self.home.exists():
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")  # as it does
            raise LocalEntryNotFoundError("cannot find the requested files.\nPlease check your connection.")
        path = self.home / repo_id / filename
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", found)
    return found


def publish(hub: Hub, repo: str, state: State, config: object = None, *, safe: bool = True) -> None:
    folder = hub.home / repo
    folder.mkdir(parents=True)
    if safe:
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("asked", "repo"), [("test_vit", "timm/test_vit.r160_in1k"), ("test_vit.r160_in1k",) * 2])
def test_timm_s_own_weights_are_taken_and_fitted(asked: str, repo: str, hub: Hub) -> None:
    repo = "timm/test_vit.r160_in1k"
    publish(hub, repo, trained("test_vit").state_dict(), safe=asked == "test_vit")
    weights = find_weights("timm", asked)
    assert (weights.place, weights.backbone) == ("timm's test_vit.r160_in1k", "test_vit")
    found = start_from(weights, "test_vit", channels=1, size=96)
    file = next((hub.home / repo).iterdir())
    expected = by_timm("test_vit", file, img_size=96, in_chans=1, num_classes=0)
    assert_close(dict(found.encoder.network.state_dict()), expected, rtol=0, atol=0)
    mean, std = ((sum(values) / 3,) for values in (weights.mean or (), weights.std or ()))
    assert found.moments == (mean, std)
    assert "left over: head.weight, head.bias" in found.notes[0]


TIMM_CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 1000,
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25], "first_conv": "conv1"},
}


@pytest.mark.parametrize(
    ("config", "backbone", "moments"),
    [
        (TIMM_CONFIG, "test_resnet", ((0.1, 0.2, 0.3), (1.0, 0.5, 0.25))),
        ({"architecture": "test_resnet", "mean": [0.5] * 3, "std": [0.5] * 3}, "test_resnet", ((0.5,) * 3,) * 2),
        ({"architectures": ["ResNetModel"], "mean": [9]}, None, None),
        (
            {"architecture": "test_resnet", "pretrained_cfg": {"mean": "none", "std": [0, 0, 0]}},
            "test_resnet",
            None,
        ),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_a_repository_of_the_hub_is_read(
    config: object, backbone: str | None, moments: object, safe: bool, hub: Hub
) -> None:
    publish(hub, "me/mine", trained().state_dict(), config, safe=safe)
    weights = find_weights("hf:me/mine@v1", "test_resnet")
    assert (weights.backbone, {each[2] for each in hub.asked}) == (backbone, {"v1"})
    found = start_from(weights, "test_resnet", channels=3, size=64)
    assert found.moments == moments
    assert_close(found.encoder.network.state_dict(), trained(num_classes=0).state_dict(), rtol=0, atol=0)
    own = "their own" if moments is None else "the weights' own"
    assert f"images are normalised with {own} mean and standard deviation" in found.notes
    assert start_from(weights, "test_resnet", channels=5, size=64).moments is None


@pytest.mark.parametrize("init", ["timm", "hf:me/mine"])
def test_without_a_connection_one_line_is_said(init: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[logging.LogRecord] = []
    retries = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(retries, "handle", told.append)
    level = retries.getEffectiveLevel()
    with pytest.raises(UserError, match=r"^--init .* check .* connection") as raised:
        find_weights(init, "test_vit")
    assert "\n" not in str(raised.value)
    assert told == []
    assert retries.getEffectiveLevel() == level <= logging.WARNING


@pytest.mark.parametrize(("init", "name"), [("timm", "test_vit"), ("hf:me/mine", "me/mine")])
def test_what_is_waited_for_is_said_once(
    init: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def slow(*_: Any, **__: Any) -> str:
        while not said:
            said.extend(filter(None, [capsys.readouterr().err]))
        raise LocalEntryNotFoundError("cannot find the requested files")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", slow)
    monkeypatch.setattr("rankgap.run.weights._PATIENCE", 0.01)
    with pytest.raises(UserError, match=r"check .* connection"):
        find_weights(init, "test_vit")
    line = f"waiting for the weights of {name}: without a connection, the Hugging Face Hub is tried for a minute\n"
    assert ["".join([*said, capsys.readouterr().err])] == [line]


@pytest.mark.parametrize(
    ("init", "backbone", "says"),
    [
        ("timm", "resnet_tiny", "timm has no weights of resnet_tiny: choose a model"),
        (
            "timm",
            "resnet18.wrong_tag",
            "the weights of resnet18.wrong_tag cannot be loaded: Invalid pretrained tag",
        ),
        ("timm", "test_nfnet.none", "choose one from timm.list_pretrained"),
        ("hf:me/empty", "test_vit", "has none of model.safetensors, pytorch_model.bin"),
        (
            "hf:",
            "test_vit",
            "--init takes timm, hf:REPO, run:FOLDER, teacher:FOLDER, or a file .*; there is no file 'hf:'",
        ),
        ("tim", "test_vit", "--init takes timm, hf:REPO, .*; there is no file 'tim'"),
        ("", "test_vit", "--init takes timm, hf:REPO, .*; there is no file ''"),
        ("run:nowhere", "test_vit", "--init run:nowhere: nowhere is not a run folder"),
    ],
)
def test_weights_that_are_not_there_are_refused(init: str, backbone: str, says: str, hub: Hub) -> None:
    (hub.home / "me" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match=says) as raised:
        find_weights(init, backbone)
    assert "\n" not in str(raised.value)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "w.pt": (
        lambda path: torch.save({}, path),
        "has no weights: expected a state_dict, tensors by name, but it holds nothing",
    ),
    "wrapped.pt": (
        lambda path: torch.save({"state_dict": {}, "epoch": 3}, path),
        "it has no tensor under state_dict, epoch",
    ),
    "list.pt": (lambda path: torch.save([torch.ones(2)], path), "it holds a list"),
    "module.pt": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        r"it holds Python objects \(torch.nn.modules.linear.Linear\), which could run code, where tensors alone",
    ),
    "sparse.pt": (lambda path: torch.save({"w": torch.eye(2).to_sparse()}, path), "has no weights"),
    "empty.pt": (nothing, "is not a file of weights"),
    "text.pth": (lambda path: path.write_text("weights"), "is not a file of weights: it is not in torch.save's"),
    "table.h5": (lambda path: path.write_text("x"), "is not a file of weights: it is not in torch.save's format"),
    "image.safetensors": (lambda path: path.write_bytes(bytes(range(256))), "is not a safetensors file"),
    "empty.safetensors": (nothing, "is not a safetensors file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_holds_no_weights_is_refused(name: str, tmp_path: Path) -> None:
    write, says = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=says) as raised:
        started(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def without(state: State, *names: str) -> State:
    return {name: each for name, each in state.items() if name not in names}


def test_missing_tensors_are_an_error_or_stay_random(tmp_path: Path) -> None:
    init = saved(without(trained().state_dict(), "bn1.weight", "bn1.running_var"), tmp_path / "w.pt")
    with pytest.raises(
        UserError,
        match=r"2 of the \d+ tensors .* \(bn1.weight is missing, bn1.running_var is missing\); .*--init-partial",
    ):
        started(init)
    found = started(init, partial=True)
    count = counted(trained(num_classes=0).state_dict())
    assert found.notes[0].startswith(f"{count - 2} of {count} tensors")
    assert "; random: bn1.weight, bn1.running_var; left over: fc.weight, fc.bias" in found.notes[0]
    network = found.encoder.network
    state, expected = network.state_dict(), trained().state_dict()
    assert torch.equal(state["bn1.weight"], torch.ones_like(state["bn1.weight"]))
    assert torch.equal(state["bn1.bias"], expected["bn1.bias"])


def test_old_files_without_batch_norm_s_counts_are_whole(tmp_path: Path) -> None:
    state = {name: each for name, each in trained().state_dict().items() if not name.endswith("tracked")}
    count = counted(state) - 2
    assert (
        started(saved(state, tmp_path / "w.pt")).notes[0].startswith(f"{count} of {count} tensors of the encoder")
    )


def test_half_precision_is_loaded_in_single(tmp_path: Path) -> None:
    half = trained().half().state_dict()
    network = started(saved(half, tmp_path / "w.pt")).encoder.network
    assert isinstance(network.conv1, nn.Module)
    for name, each in network.state_dict().items():
        assert torch.equal(each, half[name].to(each.dtype)), name
    assert network.state_dict()["bn1.weight"].dtype == torch.float32


@pytest.mark.parametrize("partial", [False, True])
def test_another_architecture_is_refused(partial: bool, tmp_path: Path) -> None:
    init = saved(trained("test_convnext").state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"of the 78 tensors of test_vit .* it is another architecture; choose its --backbone"
    ) as raised:
        started(init, "test_vit", partial=partial)
    assert "\n" not in str(raised.value)


def test_a_wider_network_s_shapes_are_named() -> None:
    weights = Weights(place="w", states={"": timm.create_model("resnet18").state_dict()}, backbone="resnet18")
    with pytest.raises(UserError, match=r"layer1.2.conv1.weight is missing.* \(resnet18\), or .* --init-partial$"):
        start_from(weights, "resnet34", channels=3, size=64)
    with pytest.raises(
        UserError,
        match=r"of resnet_tiny \(conv1.weight is \(64, 3, 7, 7\), not \(16, 3, 3, 3\), .* \(resnet18\); choose",
    ):
        start_from(weights, "resnet_tiny", channels=3, size=64)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["bn1.bias"] = torch.full_like(state["bn1.bias"], torch.nan)
    with pytest.raises(UserError, match=r"bn1\.bias is not finite"):
        started(saved(state, tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("came", "channels", "remedy"),
    [(1, 3, "use --channels 1"), (5, 3, "use 5-channel images"), (4, 1, "use 4-channel images")],
)
def test_weights_of_channels_that_timm_does_not_convert_are_refused(
    came: int, channels: int, remedy: str, tmp_path: Path
) -> None:
    init = saved(trained(in_chans=came).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=rf"takes {came}-channel images, these are {channels}-channel, .* {remedy}"
    ):
        started(init, channels=channels)
    assert started(init, channels=came).encoder(torch.zeros(2, came, 64, 64)).isfinite().all()


def stem(encoder: nn.Module) -> tuple[int, bool]:
    """The side of a ResNet's first kernel, and whether a max-pool follows it."""
    network = encoder.network
    assert isinstance(network, nn.Module)
    assert isinstance(network.conv1, nn.Conv2d)
    return network.conv1.kernel_size[0], isinstance(network.maxpool, nn.MaxPool2d)


@pytest.mark.parametrize(
    ("pretrained_at", "size", "kept", "form", "says"),
    [
        (224, 32, "own", (7, True), "the stem of the weights is kept"),
        (32, 96, "small", (3, False), "the 3x3 stem of the weights is kept"),
        (32, 32, "auto", (3, False), ""),
        (224, 96, "auto", (7, True), ""),
    ],
)
def test_a_resnet_keeps_the_stem_of_its_weights(
    pretrained_at: int, size: int, kept: Any, form: tuple[int, bool], says: str
) -> None:
    before = build_encoder("resnet18", size=pretrained_at)
    weights = Weights(place="w", states={"": before.network.state_dict()})
    found = start_from(weights, "resnet18", channels=3, size=size)
    assert found.stem == kept
    assert stem(found.encoder) == form
    assert stem(build_encoder("resnet18", size=size, stem=kept)) == form
    assert any(says in note for note in found.notes[1:])
    images: Tensor = torch.randn(2, 3, size, size)
    assert_close(found.encoder.eval()(images), before.eval()(images))


def test_timm_s_classifier_names_are_left_over(tmp_path: Path) -> None:
    found = started(saved(trained("test_vit").state_dict(), tmp_path / "w.pt"), "test_vit", size=160)
    assert found.notes[0].endswith("; left over: head.weight, head.bias")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="timm")


def test_a_folder_that_is_a_run_says_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is a run folder: write run:"):
        find_weights(str(tmp_path), "test_vit")
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        find_weights(str(tmp_path), "test_vit")
