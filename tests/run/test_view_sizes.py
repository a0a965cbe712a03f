"""Sizes of views that fit an encoder, and what is said where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.run.config import TrainConfig
from rankgap.run.plan import Plan, resolve
from tests.data.pictures import pixels, write

VIT = "vit_tiny_patch16_224"
MISSING = "folder:no/such/folder"


def plan(tmp_path: Path, **given: Any) -> Plan:
    options: dict[str, Any] = {"data": "digits", "limit": 64, "batch_size": 32, "accelerator": "cpu"}
    return resolve(TrainConfig(**options | {"backbone": VIT, "method": "dino"} | given, out=str(tmp_path / "a")))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--size", "100", "--backbone", VIT],
            f"--size 100: {VIT} takes multiples of its patch of 16 px: choose 96 or 112",
        ),
        (["--size", "8", "--backbone", VIT], f"--size 8: {VIT} takes multiples of its patch of 16 px: choose 16"),
        (
            ["--size", "224", "--backbone", "vit_relpos_small_patch16_224"],
            "does not take 3-channel images of 96 px: Input height (96) doesn't match model (224); views "
            "of several sizes need a backbone that takes them all, such as a ResNet or "
            "vit_small_patch16_224: choose one, or pass --settings 'views.*.size=null'",
        ),
        (
            ["--size", "224", "--backbone", VIT, "--settings", "views.2.size=100"],
            f"{VIT} does not take 3-channel images of 100 px",
        ),
        (
            ["--size", "32", "--recipe", "imagenet", "--backbone", "resnet_tiny"],
            "backbone resnet_tiny has no drop path: pass --settings encoder.drop_path=0",
        ),
        (["--recipe", "multicrop", "--method", "byol"], "recipe multicrop is for dino and swav, not for byol"),
        (["--settings", "encoder.backbone=resnet81"], "did you mean 'resnet18'"),
    ],
)
def test_a_size_that_does_not_fit_is_said_before_the_data_are_read(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--data", MISSING, "--out", str(tmp_path / "a")]
    assert main(["train", "--method", "dino", *out, *flags]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert says in error
    assert not (tmp_path / "a").exists()


def test_views_of_one_size_are_the_remedy_for_an_encoder_that_takes_no_other(tmp_path: Path) -> None:
    settings = {"views.*.size": None}
    found = plan(tmp_path, size=224, backbone="vit_relpos_small_patch16_224", settings=settings)
    assert set(found.recipe.sizes(224)) == {224}


@pytest.mark.parametrize(
    ("given", "size", "sizes", "said"),
    [
        ({"size": 64, "recipe": "imagenet"}, 64, {64, 32}, "views of 32 px instead of 27"),
        ({"size": 96}, 96, {96, 48}, "views of 48 px instead of 41"),
        ({"size": 224}, 224, {224, 96}, None),
        ({"size": 96, "settings": {"views.*.size": 96}}, 96, {96}, None),
        ({}, 16, {16}, "views of 16 px instead of 8"),
    ],
)
def test_sizes_that_follow_from_others_are_rounded_to_the_patch_with_a_note(
    given: dict[str, Any], size: int, sizes: set[int], said: str | None, tmp_path: Path
) -> None:
    found = plan(tmp_path, **given)
    assert (found.size, set(found.recipe.sizes(found.size)), set(found.views().sizes)) == (size, sizes, sizes)
    notes = [note for note in found.notes if "patch of 16 px" in note]
    assert notes == ([] if said is None else [f"{said}: {VIT} takes multiples of its patch of 16 px"])


def test_a_recipe_names_its_encoder_but_a_flag_comes_first(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"size": 32, "recipe": "imagenet"}
    assert plan(tmp_path, **chosen, backbone=None).backbone == "vit_small_patch16_224"
    assert plan(tmp_path, **chosen, backbone="deit_tiny_patch16_224").backbone == "deit_tiny_patch16_224"
    assert plan(tmp_path, size=32, backbone=None).backbone == "resnet_tiny"
    assert plan(tmp_path, size=32, backbone=None, settings={"encoder.backbone": VIT}).backbone == VIT


def test_a_layer_decay_without_layers_is_said_before_training(tmp_path: Path) -> None:
    settings = {"optimizer.layer_decay": 0.8}
    assert plan(tmp_path, size=32, settings=settings).recipe.optimizer.layer_decay == 0.8
    with pytest.raises(UserError, match=r"layer_decay: .* does not say which layers it has"):
        plan(tmp_path, size=32, backbone="pit_ti_224", settings=settings)


def pictures(folder: Path, *sizes: tuple[int, int]) -> str:
    """Sixteen pictures of some sizes in turn."""
    for k in range(16):
        write(folder / "pictures" / f"{k:02}.png", pixels(sizes[k % len(sizes)], seed=k))
    return f"folder:{folder / 'pictures'}"


@pytest.mark.parametrize(
    ("size", "given", "sizes"),
    [
        ((100, 140), {"backbone": "resnet_tiny"}, {140, 60}),
        ((108, 108), {}, {112, 48}),
    ],
)
def test_a_size_that_was_chosen_for_the_images_is_never_too_large_for_them(
    size: tuple[int, int], given: dict[str, Any], sizes: set[int], tmp_path: Path
) -> None:
    found = plan(tmp_path, data=pictures(tmp_path, size), batch_size=8, **given)
    assert set(found.recipe.sizes(found.size)) == sizes


def test_images_of_a_saved_run_are_kept_as_they_were_whatever_size_its_views_got(tmp_path: Path) -> None:
    begun = plan(tmp_path, data=pictures(tmp_path, (40, 30), (30, 40)), batch_size=8)
    assert (begun.size, begun.train.size, begun.train.centre) == (32, 40, 1.0)  # 32 px fit the patch of 16
    again = resolve(begun.config, saved=begun.saved())
    assert (again.size, again.train.size, again.train.centre) == (32, 40, 1.0)
