"""Names are text: every command shows names of files, classes, sets and runs unchanged."""

from __future__ import annotations

import html.parser
import json
import os
import random
from pathlib import Path

import pytest

from rankgap.cli import main
from rankgap.data.names import shown
from rankgap.show.terminal import console
from tests.data.pictures import pixels, write
from tests.small_run import FLAGS

NAMES = [
    "[red]x[bold]",
    "[WIP]",
    "<!--<script>alert(1)",
    "&lt;b&gt; <b>i<",
    "two  spaces",
    "new\nline\ttab",
    "quo\"te's",
    "😀 :smile: 图片",
    "e\u0301 combining",
    "-dash",
    "--help",
    "100%s %d",
    "{0} {x} $a$ ${y}",
    "back\\slash\\n",
    "a,b;c=d",
    "n" * 190,
    os.fsdecode(b"caf\xe9"),
    "\x1b[31mcolour\x07",
]
FAST = [*FLAGS, "--epochs", "1"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 20_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of a class for each name, in a folder whose path closes a tag of markup."""
    root = tmp_path_factory.mktemp("data") / "[" / "bold] <!--<script>"
    for i, name in enumerate(NAMES):
        for split in ("train", "test"):
            write(root / split / name / f"{i}.png", pixels(seed=i))
    return root


RUNS = ["run [red]a <!--<script> &lt; two  spaces 100%s {0} a,b=c 'q\" $a$ 😀", "-new\nline\\n", "n" * 200]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with names like these, below a folder that closes a tag."""
    home = tmp_path_factory.mktemp("runs") / "[" / "bold]"
    for name in RUNS:
        more = ["--eval", f"[red]more=folder:{data}"]
        assert main(["train", *FAST, "--data", f"folder:{data}", *more, "--out", str(home / name)]) == 0
    return [home / name for name in RUNS]


def test_inspect_shows_every_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    for name in NAMES:
        (broken / "[").mkdir(parents=True, exist_ok=True)
        (broken / "[" / f"{name}].png").write_bytes(b"")
    write(broken / "whole.png", pixels())
    flags = ["--out", str(tmp_path / "s.png"), "--broken", str(tmp_path / "broken.txt")]
    assert main(["inspect", f"folder:{broken}", *flags]) == 0
    out = capsys.readouterr().out
    listed = (tmp_path / "broken.txt").read_text(encoding="utf-8").splitlines()
    for name in NAMES:
        full = f"{broken}/[/{shown(name)}].png"
        assert f"broken: {full}: an empty file\n" in out
        assert f"{full} cannot be read: an empty file" in listed
    assert main(["inspect", f"folder:{data}", "--out", str(tmp_path / "s.png")]) == 0
    out = capsys.readouterr().out
    assert f"folder:{data}" in out
    assert sum(f"{shown(name)}: 1" in out for name in NAMES) >= 6  # the first classes


def test_train_shows_every_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(NAMES):
        write(tmp_path / "d" / f"{i}.png", pixels(seed=i))
        (tmp_path / "d" / f"{name}.png").write_bytes(b"")
    run = tmp_path / "run"
    train = ["train", *FAST, "--protocol", "none", "--data", f"folder:{tmp_path / 'd'}", "--out", str(run)]
    assert main(train) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([*train, "--on-bad-image", "skip"]) == 0
    listed = (run / "skipped_images.txt").read_text(encoding="utf-8").splitlines()
    for name in NAMES:
        assert f"{tmp_path / 'd'}/{shown(name)}.png cannot be read: an empty file" in listed
    out = tmp_path / RUNS[0]
    assert (
        main(["train", *FAST, "--data", f"folder:{data}", "--eval", f"[red]m=folder:{data}", "--out", str(out)])
        == 0
    )
    said = capsys.readouterr().out
    for text in (f"folder:{data}: ", f"run folder: {out}\n", "[red]m: knn "):
        assert text in said
    newline = tmp_path / RUNS[1]
    assert (
        main(["train", *FAST, "--data", "digits", "--limit", "8", "--protocol", "none", "--out", str(newline)])
        == 0
    )
    assert f"run folder: {tmp_path}/-new\\nline\\n\n" in capsys.readouterr().out
    # A name in an error.
    assert main(["train", *FAST, "--data", "folder:/nowhere/[/red] two  spaces"]) == 2
    assert "there is no folder /nowhere/[/red] two  spaces" in capsys.readouterr().err


def test_what_reads_runs_shows_their_names(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run) for run in runs]
    capsys.readouterr()
    assert main(["compare", *paths]) == 0
    out = capsys.readouterr().out
    for run in runs:
        assert f"simsiam ({shown(run.name)})" in out
    for path in paths:
        for command in (["evaluate", path], ["score", path, "--images", "8"], ["watch", path]):
            assert main(command) == 0
        assert main(["design", "--online", "log1p", "--spectrum", path, "--out", str(tmp_path / "d.png")]) == 0
    assert main(["methods"]) == 0


class Page(html.parser.HTMLParser):
    """The text of a page outside its scripts, the tags, and what is in the first script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def test_a_report_shows_their_names_and_none_becomes_code(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "<!-- [red] & report.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 3
    assert page.tags[-1] == "script"  # none is swallowed by a comment
    text = "".join(page.text)
    for run in runs:
        assert f"simsiam ({shown(run.name)})" in text
    assert "<" not in page.scripts[0]
    figures = json.loads(page.scripts[0])
    assert figures
    assert "!--<script>" in json.dumps(figures) or "!--&lt;script&gt;" in json.dumps(figures)


def test_random_names_are_read_shown_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    letters = "[]<>!-&;:'\"\\%{}$=, \n\t\x1b*?#|~`^@()+é\u0301图😀\u202e\u2028" + os.fsdecode(b"\xe9\xff")
    names = {"".join(rng.choices(letters, k=rng.randint(1, 12))) + f"{i}.png" for i in range(60)}
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / "d" / f"x{name}").write_bytes(b"")
    write(tmp_path / "d" / "whole.png", pixels())
    file = tmp_path / "broken.txt"
    assert (
        main(["inspect", f"folder:{tmp_path / 'd'}", "--out", str(tmp_path / "s.png"), "--broken", str(file)]) == 0
    )
    listed = file.read_text(encoding="utf-8").splitlines()
    assert {line.partition(" cannot be read")[0] for line in listed} == {
        f"{tmp_path / 'd'}/x{shown(name)}" for name in names
    }
