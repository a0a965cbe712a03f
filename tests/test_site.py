"""The documentation site: it builds without a warning, and a real browser, where there is one, opens its pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from rankgap.commands import COMMANDS
from rankgap.evaluate.scores import SCORES
from rankgap.watch.doctor import FAULTS

ROOT = Path(__file__).parents[1]

pytest.importorskip("furo", reason="the site's libraries are not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, except that its notebooks, which have tests of their own, are not run."""
    out = tmp_path_factory.mktemp("site")
    sphinx = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        "docs",
        "-D",
        "nb_execution_mode=off",
    ]
    done = subprocess.run([*sphinx, ".", str(out)], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    """All its pages, without files that it offers for download."""
    found = [page for page in site.rglob("*.html") if page.relative_to(site).parts[0] in ("docs", "benchmarks")]
    assert len(found) >= 30
    return [*sorted(found), site / "search.html", site / "genindex.html"]


def opened(browser: Browser, said: list[str], **options: object) -> Page:
    """A new page whose errors and requests outside the site's files are told."""
    page = browser.new_page(**options)  # type: ignore[arg-type]
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
    )
    return page


@pytest.fixture(params=[400, 1280])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    said: list[str] = []
    page = opened(browser, said, viewport={"width": request.param, "height": 900})
    yield page, said
    page.close()


def test_no_page_scrolls_sideways_complains_or_asks_another_host(
    pages: list[Path], page: tuple[Page, list[str]]
) -> None:
    view, said = page
    for file in pages:
        view.goto(file.as_uri())
        wider = view.evaluate(  # the content scrolls within itself; a table or a block of code in it may
            """Array.from(document.querySelectorAll("html, .main, .content"))
               .filter((each) => each.scrollWidth > each.clientWidth)
               .map((each) => `${each.tagName} ${each.scrollWidth} > ${each.clientWidth}`)"""
        )
        assert wider == [], file
        assert said == [], file


def test_the_search_finds_a_name_without_a_network(site: Path, browser: Browser) -> None:
    said: list[str] = []
    view = opened(browser, said)
    view.goto(f"{(site / 'search.html').as_uri()}?q=RankMonitor")
    view.wait_for_selector("#search-results li a")
    assert any(
        "watch" in (link.get_attribute("href") or "") for link in view.locator("#search-results li a").all()
    )
    assert not [text for text in said if text.startswith("http")]


def test_what_the_code_registers_is_on_its_page(site: Path) -> None:
    def read(name: str) -> str:
        text = (site / "docs" / f"{name}.html").read_text(encoding="utf-8")
        return re.sub(r"</?span[^>]*>", "", text)  # each word of code has its own

    assert all(f'id="rankgap-{name}"' in read("commands") for name in COMMANDS)
    assert '<code class="docutils literal notranslate">--batch-size N</code>' in read("commands")
    assert all(name in read("numbers") for name in [*SCORES, *(fault.kind for fault in FAULTS)])
    assert all(
        f"--recipe {file.parent.name}" in read("recipes") for file in ROOT.glob("src/rankgap/run/recipes/*/*.yaml")
    )
    assert all(
        f'id="rankgap.RankMonitor{member}"' in read("api/rankgap") for member in ("", ".update", ".compute")
    )


def test_the_front_of_the_site_leads_to_its_first_page(site: Path, browser: Browser) -> None:
    view = opened(browser, [])
    view.goto((site / "index.html").as_uri())
    view.wait_for_url("**/docs/index.html")
    for name in ("watch.html", "train.html", "design.html", "start.html"):
        assert view.locator(f'article a[href="{name}"]').count()
