"""What an exported folder holds, what is refused, and what a user is told."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import yaml
from torch.testing import assert_close

import rankgap as rg
from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.exporting import verification
from rankgap.exporting.export import export_run
from rankgap.exporting.folder import replacing_folder
from rankgap.exporting.preprocessing import Preprocessing
from rankgap.run.config import TrainConfig
from rankgap.run.folder import RunFolder
from rankgap.run.trainer import train
from rankgap.views import eval_view
from tests.data.pictures import photograph
from tests.exporting.hub_server import hub
from tests.exporting.own_network import Pooled
from tests.small_run import four_steps

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 4, "loggers": (), "protocol": (), "accelerator": "cpu"}


def photographs(size: int) -> Any:
    return np.stack([np.asarray(photograph((size, size), which=k % 2)) for k in range(8)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, with scores."""
    out = tmp_path_factory.mktemp("home") / "digits"
    train(four_steps(out, protocol=("knn",)))
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of photographs, of which evaluation sees the central 7/8, with timm's own network."""
    home = tmp_path_factory.mktemp("photos")
    (home / "secret place").mkdir()
    for k in range(4):
        photograph((180 + 8 * k, 240), which=k % 2).save(home / "secret place" / f"{k}.png")
    data = f"folder:{home / 'secret place'}"
    train(TrainConfig(data=data, size=70, backbone="resnet18", out=str(home / "run"), **SHORT))
    return home / "run"


def tells(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error of the command."""
    assert main(["export", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("crop_share", [1.0, 0.875])
@pytest.mark.parametrize("size", [32, 70])
@pytest.mark.parametrize("sides", [(32, 32), (120, 75), (41, 200), (20, 24)])
def test_the_shipped_preprocessing_is_the_evaluation_s_view(
    crop_share: float, size: int, sides: tuple[int, int]
) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    images = torch.randint(0, 256, (2, 3, *sides), dtype=torch.uint8)
    found = Preprocessing(size=size, crop_share=crop_share, mean=mean, std=std)(images)
    assert_close(found, eval_view(images, None, size, mean, std, crop_share), rtol=0, atol=2e-4)


def test_the_shipped_preprocessing_knows_one_interpolation() -> None:
    with pytest.raises(ValueError, match="expected interpolation bicubic, got 'nearest'"):
        Preprocessing(size=8, crop_share=1, mean=[0.5], std=[0.5], interpolation="nearest")


def test_timm_loads_the_weights_by_an_overlay_too(photos: Path, tmp_path: Path) -> None:
    folder = export_run(photos, to="timm", out=tmp_path / "out").folder
    overlay = {"file": str(folder / "model.safetensors")}
    encoder = timm.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0).eval()
    images = torch.randint(0, 256, (2, 3, 90, 120), dtype=torch.uint8)
    assert_close(encoder(Preprocessing.of(folder)(images)), rg.load_encoder(photos)(images), rtol=0, atol=1e-5)


def test_the_registered_name_loads_by_an_overlay_too(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_run(run, to="timm", out=tmp_path / "out").folder
    monkeypatch.syspath_prepend(folder)
    __import__("rankgap_resnet_tiny")
    overlay = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    overlay["file"] = str(folder / "model.safetensors")
    encoder = timm.create_model("rankgap_resnet_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert_close(encoder(Preprocessing.of(folder)(images)), rg.load_encoder(run)(images), rtol=0, atol=1e-5)
    classifier = timm.create_model("rankgap_resnet_tiny", in_chans=1, num_classes=5)
    assert classifier(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    maps = timm.create_model("rankgap_resnet_tiny", in_chans=1, features_only=True)(torch.zeros(2, 1, 32, 32))
    assert [each.shape[1] for each in maps] == [16, 16, 32, 64, 128]


def test_timm_s_own_transform_makes_the_same_view(photos: Path, tmp_path: Path) -> None:
    folder = export_run(photos, to="timm", out=tmp_path / "out").folder
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    settings = timm.data.resolve_model_data_config(encoder)
    transform = timm.data.create_transform(**settings)
    image = photograph((180, 247))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    levels = (transform(image) - Preprocessing.of(folder)(pixels)[0]) * torch.tensor(settings["std"])[
        :, None, None
    ]
    assert float(levels.abs().mean()) < 0.5 / 255  # it rounds to 8 bits
    assert float(levels.abs().max()) < 12 / 255  # its resize sees past the edge of the crop


def test_the_card_says_what_is_known(run: Path, tmp_path: Path) -> None:
    made = export_run(run, to="timm", out=tmp_path / "out", license="mit")
    _, front, text = (made.folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit",
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["rankgap", "self-supervised-learning", "simsiam", "timm"],
    }
    results = RunFolder(run).results()
    images = results["sets"]["test"]["images"]
    knn = f"| knn | test, {images} images | {100 * results['knn']:.1f}% | {results['protocol']['knn']} |"
    ranks = f"{results['erank_online']:.1f} online, {results['erank_target']:.1f} target"
    for said in (knn, ranks, "step 4 of 4", "digits, 128 images", f"Verdict: {results['verdict']['kind']}"):
        assert said in text, said
    assert set(re.findall(r"^\* `(.*?)`", text, flags=re.MULTILINE)) == set(made.files)
    assert {path.name for path in made.folder.iterdir()} == set(made.files)


def test_a_branch_without_scores_says_so(run: Path, tmp_path: Path) -> None:
    folder = export_run(run, to="timm", branch="target", out=tmp_path / "out").folder
    assert "None was measured for the target branch." in (folder / "README.md").read_text()


def test_no_file_names_a_place_on_this_machine(photos: Path, tmp_path: Path) -> None:
    for to in ("timm", "hf"):
        folder = export_run(photos, to=to, out=tmp_path / to).folder
        for file in folder.iterdir():
            assert str(photos.parent).encode() not in file.read_bytes(), file
            assert file.stat().st_mode & 0o777 == (folder / "config.json").stat().st_mode & 0o777
    assert "folder:.../secret place" in (folder / "README.md").read_text()


def test_an_onnx_file_says_its_opset_and_leaves_the_batch_open(run: Path, tmp_path: Path) -> None:
    made = export_run(run, to="onnx", preprocessing=True, out=tmp_path / "out")
    (note,) = made.notes
    measured = r"differ by \S+ at most \(features up to \S+\) on 64 of the run's images"
    assert re.fullmatch(rf"ONNX Runtime \(opset 18\) and PyTorch {measured}", note)
    assert note in (made.folder / "README.md").read_text()
    content = (made.folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"rankgap" not in content
    model = onnx.load_from_string(content)
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    (taken,) = model.graph.input
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [bool(axis.dim_param) for axis in taken.type.tensor_type.shape.dim] == [True, False, True, True]


def test_a_graph_that_gives_other_features_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run, to="timm", out=tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    monkeypatch.setattr(verification, "LIMIT", -1.0)
    with pytest.raises(
        UserError, match=r"differ by .* on 64 of the run's images: more than -1, so nothing is exported"
    ):
        export_run(run, to="torch-export", out=tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_bytes() == before


def test_a_folder_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()

    def fill(fail: bool) -> None:
        with replacing_folder(tmp_path / "out") as folder:
            (folder / "new").touch()
            assert (tmp_path / "out" / "old").exists()
            if fail:
                raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fill(True)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old"]
    fill(False)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/new"]


def test_only_an_export_is_overwritten_and_only_when_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = tmp_path / "out", [str(run), "--to", "timm", "--out"]
    assert main(["export", *flags, str(out)]) == 0
    assert "exists: use another --out, or replace it with --overwrite" in tells(capsys, *flags, str(out))
    (out / "notes.txt").write_text("mine")
    assert "also holds notes.txt, so it is not overwritten" in tells(capsys, *flags, str(out), "--overwrite")
    (out / "notes.txt").unlink()
    (out / "__pycache__").mkdir()  # from loading it
    assert main(["export", str(run), "--to", "hf", "--out", str(out), "--overwrite"]) == 0
    assert (out / "encoder.py").is_file()
    assert not (out / "rankgap_resnet_tiny.py").exists()
    assert "holds no export, so it is not overwritten" in tells(capsys, *flags, str(run), "--overwrite")
    assert "is a file: choose another --out" in tells(capsys, *flags, str(run / "config.yaml"), "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    assert "holds no export" in tells(capsys, *flags, str(tmp_path / "other"), "--overwrite")
    assert (tmp_path / "other" / "config.json").read_text() == "[]"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "export needs a format: --to timm, safetensors, onnx, torch-export, hf"),
        (["--to", "timn"], "unknown --to 'timn': did you mean 'timm'?"),
        (["--to", "timm", "--preprocessing"], "--to timm holds no graph, so no preprocessing goes inside"),
        (["--to", "timm", "--checkpoint", "bset"], "unknown checkpoint 'bset'"),
        (["--to", "timm", "--push", "a/b/c"], "--push takes a name such as you/encoder"),
        (["--to", "timm", "--push", "a/b"], "--push needs a token of the Hugging Face Hub"),
    ],
)
def test_bad_flags_of_export_get_one_line(
    flags: list[str],
    says: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rankgap.exporting.hub.get_token", lambda: None)
    assert says in tells(capsys, str(run), *flags, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_of_the_python_call_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'onx': did you mean 'onnx'"):
        rg.export(run, to="onx", out=tmp_path / "out")  # type: ignore[arg-type]


def test_a_missing_library_of_one_format_stops_that_format_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "rankgap.exporting.to_onnx", raising=False)
    said = "export to onnx needs onnxruntime, which is not installed: pip install 'rankgap[export]'"
    assert said in tells(capsys, str(run), "--to", "onnx", "--out", str(tmp_path / "out"))
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "out")]) == 0


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run folder" in tells(capsys, str(tmp_path), "--to", "timm", "--out", str(tmp_path / "out"))


def test_a_collapsed_run_warns_with_its_ranks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    folder = RunFolder(copied)
    verdict = folder.results()["verdict"] | {"kind": "collapsed", "saw": "all outputs point one way"}
    folder.write_results(folder.results() | {"verdict": verdict})
    assert main(["export", str(copied), "--to", "timm", "--out", str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    ranks = folder.metrics()
    online, target = (ranks[name][-1] for name in ("erank_online", "erank_target"))
    said = f"at the last reading, after 3 of 4 steps: {online:.1f} online, {target:.1f} target"
    assert "warning: the run is collapsed: the outputs use" in told
    assert said in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "> **Warning.** The run is collapsed: the outputs use" in card
    with pytest.warns(UserWarning, match="the run is collapsed"):
        rg.export(copied, to="timm", out=tmp_path / "again")


def test_an_untrained_or_unfinished_run_warns(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    state = torch.load(copied / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(state | {"step": 0}, copied / "checkpoints" / "last.ckpt")
    (copied / "results.json").unlink()
    made = export_run(copied, to="timm", out=tmp_path / "out")
    assert made.warnings == (
        "the encoder is untrained: 0 steps",
        "the run has no verdict yet: it did not reach its end. No rank was read before this checkpoint.",
    )


def test_a_healthy_run_warns_of_nothing(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    assert folder.verdict() is not None
    folder.write_results(
        folder.results() | {"verdict": folder.results()["verdict"] | {"kind": "healthy", "saw": ""}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = rg.export(run, to="safetensors", out=tmp_path / "out")
    assert made.warnings == ()
    assert "Warning" not in (made.folder / "README.md").read_text()


def test_a_network_of_one_s_own_goes_where_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Pooled()
    run = rg.train(photographs(24), model=model, out=tmp_path / "run", **SHORT)
    told = tells(capsys, str(run.folder), "--to", "onnx", "--out", str(tmp_path / "out"))
    assert "a model of your own, Pooled, which only Python can rebuild" in told
    assert "rankgap.export(RUN, to=..., model=...)" in told
    with pytest.raises(UserError, match="timm cannot build Pooled, a model of your own: use onnx or torch-export"):
        rg.export(run, to="timm", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    expected, before = run.encoder(images), model.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so short a run
        program = rg.export(run, to="torch-export", out=tmp_path / "program", preprocessing=True)
        rg.export(run.folder, to="safetensors", model=Pooled(), out=tmp_path / "weights")
    assert "scikit-learn's photographs" in program.notes[0]
    assert_close(torch.export.load(program.folder / "model.pt2").module()(images), expected, rtol=0, atol=1e-5)
    made: dict[str, Any] = {}
    text = (tmp_path / "weights" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(code.replace('folder = "."', f"folder = {str(tmp_path / 'weights')!r}"), made)
    assert_close(made["features"], run.encoder(made["images"]), rtol=0, atol=1e-5)
    assert model.training == before


def test_a_network_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Counting(Pooled):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * int(images.sum() > -1e9)

    run = rg.train(photographs(24), model=Counting(), out=tmp_path / "run", **SHORT)
    with pytest.raises(UserError, match=r"torch.export cannot trace .*Counting: .*; use --to safetensors"):
        export_run(run.folder, to="torch-export", model=Counting(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_push_uploads_every_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = [str(run), "--to", "hf", "--out", str(out), "--push", "someone/tiny"]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub() as there:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there.address)
        assert main(["export", *flags]) == 0
        assert f"address: {there.address}/someone/tiny" in capsys.readouterr().out
        sent = {path.name: path.read_bytes() for path in out.iterdir()}
        assert there.files == sent
        assert b'huggingface_hub.snapshot_download("someone/tiny")' in sent["README.md"]
        assert "Bearer hf_secret" in there.tokens
        assert b"hf_secret" not in b"".join(sent.values())
        again = ["export", str(run), "--to", "timm", "--out", str(tmp_path / "other"), "--push", "someone/tiny"]
        own = {".gitattributes": b"", "LICENSE": b"mine", "figures/model.onnx": b""}
        there.files |= own
        assert main(again) == 0  # what only the earlier export wrote is gone
        assert "encoder.py" in sent
        assert there.files == own | {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
        assert there.commits == 2
        there.refuses = True
        said = tells(capsys, *flags, "--overwrite")
        assert f"{out} is written, but not pushed to someone/tiny: 403 Forbidden" in said
        assert f"try hf upload someone/tiny {out}" in said
    assert "is written, but not pushed to someone/tiny" in tells(capsys, *flags, "--overwrite")  # nobody answers
    assert (out / "config.json").is_file()


def test_a_checkpoint_before_the_end_has_no_scores_of_its_own(tmp_path: Path) -> None:
    train(four_steps(tmp_path / "run", protocol=("knn",), keep_every=1))
    first = export_run(tmp_path / "run", to="safetensors", checkpoint="epoch-0001", out=tmp_path / "first").folder
    last = export_run(tmp_path / "run", to="safetensors", checkpoint="epoch-0002", out=tmp_path / "last").folder
    said = ("It is of the whole run, not of this checkpoint.", "They are of the run's last checkpoint")
    assert all(text in (first / "README.md").read_text() for text in said)
    assert "Effective rank at the last reading, after 1 of 4 steps: " in (first / "README.md").read_text()
    assert not any(text in (last / "README.md").read_text() for text in said)
