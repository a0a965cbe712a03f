"""The README and the pages under docs/: their code runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import rankgap
from benchmarks.page import run
from rankgap.cli import command_parser
from rankgap.commands import COMMANDS
from rankgap.data import load_data
from rankgap.filters.gains import GAINS
from rankgap.model.methods import METHODS
from rankgap.run.config import TrainConfig
from rankgap.run.trainer import train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(file for file in DOCS.rglob("*.md") if "_build" not in file.parts)]
TEXTS = [*PAGES, *sorted(ROOT.glob("[!R]*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and with what the pages read and write."""
    home = tmp_path_factory.mktemp("pages")
    out = str(home / "runs" / "photos")
    train(TrainConfig(data="digits", limit=64, epochs=1, batch_size=32, protocol=(), out=out))
    (home / "benchmarks").symlink_to(ROOT / "benchmarks")
    (home / "docs").mkdir()
    return home


@pytest.fixture
def registries() -> Iterator[None]:
    methods, gains = dict(METHODS), dict(GAINS)
    yield
    for registry, before in ((METHODS, methods), (GAINS, gains)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]
    plt.close("all")


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    run(page, {"images": load_data("digits")[0].batch(range(64)).images})
    drawn = {path.name for path in (place / "docs").glob("*.png")}
    shown = set(re.findall(r"!\[.*?\]\((\d.*?\.png)\)", page.read_text()))
    assert page.parent != DOCS or shown <= drawn  # a page's code draws its pictures


def test_there_is_code_to_run_where_a_reader_expects_it() -> None:
    for page in ("README.md", *(f"docs/{name}.md" for name in ("watch", "train", "design", "methods", "numbers"))):
        assert blocks(ROOT / page, "python"), page
    pictures = {file.name for file in DOCS.glob("*.png")}
    assert len(pictures) >= 5
    assert all(any(f"({name})" in page.read_text() for page in PAGES) for name in pictures)


@pytest.mark.parametrize("page", [page for page in PAGES if "rankgap " in "".join(blocks(page, "sh"))], ids=named)
def test_the_commands_of_a_page_have_the_flags_that_it_gives_them(page: Path) -> None:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program != "rankgap":
            continue
        assert words[0] in COMMANDS, line
        command_parser(words[0]).parse_args(words[1:])  # raises what the command would report


def test_what_is_pasted_into_research_code_has_the_monitor_s_options() -> None:
    page = DOCS / "watch" / "research-code.md"
    calls = [node for block in blocks(page, "py") for node in ast.walk(ast.parse(block))]
    monitors = [
        call
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "RankMonitor"
    ]
    assert len(monitors) == page.read_text().count("\n## ") >= 7
    for monitor in monitors:
        assert {word.arg for word in monitor.keywords} <= inspect.signature(rankgap.RankMonitor).parameters.keys()


def test_every_example_is_shown() -> None:
    shown = "".join(page.read_text() for page in (DOCS / "watch").glob("*.md"))
    examples = {file.name for file in (ROOT / "examples").glob("*.py")} - {"digits.py", "photos.py"}
    assert all(f"../../examples/{name}" in shown for name in examples)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    }
    made = "{made} commands" in page.read_text()
    return found | {f"rankgap-{name}" for name in COMMANDS if made}


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```(?!\{).*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(<?([^)>\s]+)>?\)", text)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    links += re.findall(r"^```\{(?:literalinclude|include|image)\} (\S+)", text, flags=re.MULTILINE)
    for link in links:
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_the_readme_begins_with_the_two_commands_and_shows_every_row() -> None:
    assert README.index("make demo") < README.index("make test") < README.index("## Watch")
    assert all(f"`{name}`" in README for name in METHODS)


def test_the_parts_of_the_readme_that_pages_show_are_marked() -> None:
    for page in PAGES:
        for mark in re.findall(r"<!-- [\w ]+ -->", page.read_text()):
            assert README.count(mark) == 1, f"{page}: {mark}"


def test_the_picture_of_the_method_is_what_its_code_draws() -> None:
    spec = importlib.util.spec_from_file_location("picture", DOCS / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    for name, colours in code.PICTURES.items():
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == code.picture(colours)


def test_every_public_name_exists() -> None:
    assert set(rankgap.__all__) <= set(dir(rankgap))
    assert all(getattr(rankgap, name) is not None for name in rankgap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rankgap.nothing  # noqa: B018
