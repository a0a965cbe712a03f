from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from rankgap.data import load_data
from rankgap.data.names import shown
from rankgap.errors import UserError
from rankgap.show.design_figure import design_figure
from rankgap.theory.design import assess
from rankgap.theory.reference import reference_spectrum
from tests.data.pictures import encoded, pixels, write


def fill(folder: Path, count: int = 2) -> Path:
    for i in range(count):
        write(folder / f"{i}.png", pixels(seed=i))
    return folder


def notes(root: Path) -> str:
    return " | ".join(load_data(f"folder:{root}")[0].notes)


# What is no image of the user's


@pytest.mark.parametrize(
    "debris",
    [
        "a/Thumbs.db",
        "a/._0.jpg",
        "__MACOSX/a/0.jpg",
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/0.jpg",
        "System Volume Information/0.jpg",
        ".ipynb_checkpoints/0-checkpoint.png",
        "#recycle/0.png",
    ],
)
def test_what_systems_leave_is_no_image_and_no_class(tmp_path: Path, debris: str) -> None:
    for label in "ab":
        fill(tmp_path / label)
    (tmp_path / debris).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / debris).write_bytes(encoded(pixels((30, 30)), "JPEG"))
    train, _ = load_data(f"folder:{tmp_path}")
    assert (len(train), train.classes, train.size) == (4, ["a", "b"], 12)
    assert not any("ignored" in note for note in train.notes)


def test_what_rankgap_writes_never_becomes_data(tmp_path: Path) -> None:
    for label in "ab":
        fill(tmp_path / label)
    assessment = assess("log1p", None, reference_spectrum(None))
    design_figure(assessment, tmp_path / "any name.png")
    run = tmp_path / "runs" / "x"
    fill(run / "media")
    for name in ("config.yaml", "metrics.csv"):
        (run / name).touch()
    train, _ = load_data(f"folder:{tmp_path}")
    assert any("2 pictures or run folders that rankgap wrote are left out" in note for note in train.notes)
    (tmp_path / "any name.png").unlink()
    train, _ = load_data(f"folder:{tmp_path}")
    assert any("1 picture or run folder that rankgap wrote is left out" in note for note in train.notes)
    for name in ("any name.png", "runs/demo.png"):
        design_figure(assessment, tmp_path / name)
    train, _ = load_data(f"folder:{tmp_path}")
    assert (len(train), train.classes, train.size) == (4, ["a", "b"], 12)
    assert any("3 pictures or run folders that rankgap wrote are left out" in note for note in train.notes)


def test_a_pipe_is_not_waited_for_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert len(load_data(f"folder:{tmp_path}")[0]) == 2
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        load_data(f"folder:{tmp_path}")


def test_a_folder_of_other_files_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"no images in it, only 1 \.heic; expected"):
        load_data(f"folder:{tmp_path}")


def test_of_two_links_to_one_folder_the_first_by_name_counts(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere")
    for name in ("data/b", "data/a", "data/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(elsewhere)
    fill(tmp_path / "data" / "d")
    assert load_data(f"folder:{tmp_path}/data")[0].classes == ["a", "d"]


# Splits and classes


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "Valid"),
        ("train_images", "val_images"),
        ("archive/train", "archive/test"),
    ],
)
def test_folders_named_after_splits_are_splits(tmp_path: Path, train: str, test: str) -> None:
    for folder, count in ((train, 3), (test, 2)):
        for label in "ab":
            fill(tmp_path / folder / label, count)
    found, held_out = load_data(f"folder:{tmp_path}")
    assert held_out is not None
    assert (len(found), len(held_out), found.classes) == (6, 4, ["a", "b"])


def test_a_test_folder_among_others_is_said_to_be_trained_on(tmp_path: Path) -> None:
    for name in ("cats", "dogs", "test"):
        fill(tmp_path / name)
    assert "images in test/ are trained on as well; to keep them apart" in notes(tmp_path)
    for name in ("train station", "test tube"):
        fill(tmp_path / "objects" / name)
    assert load_data(f"folder:{tmp_path}/objects")[1] is not None  # with no other folder, they look like splits
    fill(tmp_path / "objects" / "car")
    assert load_data(f"folder:{tmp_path}/objects")[1] is None
    assert "test tube/ are trained on" in notes(tmp_path / "objects")


def test_a_folder_that_holds_the_classes_alone_is_looked_into(tmp_path: Path) -> None:
    for label in "ab":
        fill(tmp_path / "archive" / "v1" / label)
    assert load_data(f"folder:{tmp_path}")[0].classes == ["a", "b"]


def test_images_that_cost_the_classes_are_named(tmp_path: Path) -> None:
    for label in "ab":
        fill(tmp_path / label)
    write(tmp_path / "a" / "more" / "x.png", pixels())
    assert "no labels, because a/more/x.png lies deeper than the folders that would be classes" in notes(tmp_path)
    (tmp_path / "a" / "more" / "x.png").rename(tmp_path / "cover.png")
    assert "no labels, because cover.png lies beside the folders" in notes(tmp_path)
    fill(tmp_path, 9)  # now most images lie beside the folders: nobody meant them as classes
    assert "because" not in notes(tmp_path)


def test_classes_that_differ_in_unicode_form_alone_are_one(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for label in ("café", "thé"):
            fill(tmp_path / split / unicodedata.normalize(form, label))  # type: ignore[arg-type]
    train, test = load_data(f"folder:{tmp_path}")
    assert test is not None
    assert train.classes == test.classes == ["café", "thé"]


def test_classes_with_test_images_alone_come_last_and_are_noted(tmp_path: Path) -> None:
    for label in "acd":
        fill(tmp_path / "train" / label)
        fill(tmp_path / "test" / label)
    fill(tmp_path / "test" / "b")
    (tmp_path / "train" / "b").mkdir()
    train, test = load_data(f"folder:{tmp_path}")
    assert test is not None
    assert train.labels is not None
    assert test.labels is not None
    assert train.classes == test.classes == ["a", "c", "d", "b"]
    assert int(train.labels.max()) == 2
    assert test.labels.tolist() == [0, 0, 3, 3, 1, 1, 2, 2]
    assert "some of classes without training images (b)" in " ".join(train.notes)


# Names


def test_names_are_bytes_and_are_shown_as_one_line(tmp_path: Path) -> None:
    for label in (b"caf\xe9", b"tea"):
        folder = os.fsdecode(os.fsencode(tmp_path) + b"/" + label)
        fill(Path(folder))
    write(tmp_path / "tea" / ("n" * 251 + ".png"), pixels())
    train, _ = load_data(f"folder:{tmp_path}")
    assert train.classes == ["caf\\xe9", "tea"]
    assert len(train) == 5
    broken = os.fsencode(tmp_path) + b"/tea/b\xfcs  y\n.png"
    Path(os.fsdecode(broken)).write_bytes(b"")
    with pytest.raises(UserError, match=r"tea/b\\xfcs  y\\n\.png cannot be read: an empty file"):
        load_data(f"folder:{tmp_path}")


def test_a_name_is_shown_letter_for_letter_where_it_can_be_printed() -> None:
    for name in ("Größe 图片 😀", "[red]x[/red]", "a  b", "100% {0} <b>"):
        assert shown(name) == name
    assert shown("a\tb\x1b[31m\u202e") == "a\\tb\\x1b[31m\\u202e"
    shown("\ud800").encode()
