"""The report, opened in a real browser where there is one."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch import Tensor

from rankgap.cli import main
from rankgap.run.folder import RunFolder
from rankgap.show.report.page import report_page, write_report
from rankgap.show.report.panels import filter_panel
from rankgap.show.report.runs import Run
from rankgap.spectra.pair import PairSpectrum, pair_spectrum
from tests.matrices import gaussian

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHORT = ["--epochs", "2", "--batch-size", "64", "--limit", "256", "--rank-every", "1", "--protocol", "knn"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    home = tmp_path_factory.mktemp("runs")
    folders = [RunFolder(home / method) for method in ("simsiam", "swav")]
    for folder in folders:
        assert main(["train", "--method", folder.name, *SHORT, "--out", str(folder.path)]) == 0
    return folders


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(runs: list[RunFolder], browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", *(str(run.path) for run in runs), "--out", str(out)]) == 0
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(out.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 10")
    assert [text for text in said if not text.startswith(("data:", "blob:"))] == [out.as_uri()]
    return page


def at_step(step: int, online: Tensor, target: Tensor) -> PairSpectrum:
    return dataclasses.replace(pair_spectrum(online, target), step=step)


def trace(page: Page, figure: str, name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = page.evaluate(
        """([figure, name]) => {
            const trace = document.getElementById(figure).data.find((t) => t.name === name);
            return {x: Array.from(trace.x), y: Array.from(trace.y)};
        }""",
        [figure, name],
    )
    return found


def test_the_page_shows_the_ranks_of_each_run(page: Page, runs: list[RunFolder]) -> None:
    for index, run in enumerate(runs):
        metrics = run.metrics()
        for branch in ("online", "target"):
            shown = trace(page, f"ranks-{index}", branch)
            assert shown["x"] == pytest.approx(metrics["epoch"], rel=1e-3)
            assert shown["y"] == pytest.approx(metrics[f"erank_{branch}"], rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_slider_shows_the_spectra_of_its_step(page: Page, runs: list[RunFolder], share: float) -> None:
    for slider in page.locator(".slider input").all():
        slider.fill(str(round(1000 * share)))
    for index, run in enumerate(runs):
        records = run.spectra()
        now = min(records, key=lambda pair: abs(((pair.step or 0) + 1) / len(records) - share))
        for branch, s in (("online", now.spectrum_online), ("target", now.spectrum_target)):
            shown = trace(page, f"spectra-{index}", branch)
            wanted = [float(s[round(i) - 1] / s[0]) for i in shown["x"]]
            pairs = [(y, w) for y, w in zip(shown["y"], wanted, strict=True) if y is not None]
            assert len(pairs) > 10
            assert [y for y, _ in pairs] == pytest.approx([w for _, w in pairs], rel=1e-3)
        for name, gains in (("measured gain", now.measured_filter), ("transfer", now.transfer)):
            shown = trace(page, f"filter-{index}", name)
            assert shown["x"][0] == 1
            first = float(gains[0] / now.transfer.max())
            assert shown["y"][0] == (pytest.approx(first, rel=1e-3) if first > 0 else None)
        aligned = float(now.eigenspace_alignment[0])
        assert trace(page, f"alignment-{index}", "alignment")["y"][0] == pytest.approx(aligned, rel=1e-3)
        note = page.locator(f"figure:has(#filter-{index}) small").inner_text()
        epoch = (now.step or 0) / run.saved().work.steps_per_epoch
        assert note.startswith(f"epoch {epoch:.1f}: low-pass score {now.low_pass_score:+.2f}")


def test_a_filter_that_turns_all_about_and_a_target_of_zeros_are_drawn(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "odd")
    shutil.copytree(runs[0].path, folder.path)
    t = gaussian(20, 5)
    folder.spectra_file.unlink()
    folder.add_spectra(at_step(0, -2 * t, t))
    folder.add_spectra(at_step(2, t, 0 * t))
    turned, zero = filter_panel(Run(folder, "a run"), 0).frames
    assert all(y == pytest.approx(1, rel=1e-4) for y in turned["y"][0])
    assert set(turned["y"][1]) == {None}
    assert zero["y"] == [[], []]
    assert zero["note"] == "epoch 0.5: the target is zero"


def test_a_figure_gives_its_data(page: Page, runs: list[RunFolder], tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.locator("figure:has(#ranks-1) button").click()
    download.value.save_as(tmp_path / "ranks.csv")
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    target = [float(row["y"]) for row in rows if row["series"] == "target"]
    assert target == pytest.approx(runs[1].metrics()["erank_target"], rel=1e-3)
    assert {row["series"] for row in rows} == {"online", "target"}


def test_results_alarms_and_configuration_are_read_off_the_page(page: Page, runs: list[RunFolder]) -> None:
    cells = page.locator("section:has(h2:text('Results')) tr:nth-child(2) td").all_inner_texts()
    assert cells[0] == "simsiam"
    assert f"{100 * runs[0].results()['knn']:.1f}" in cells
    bars = page.evaluate("document.getElementById('accuracy').data.map((t) => [t.name, Array.from(t.x)])")
    assert dict(bars)["kNN"] == pytest.approx([100 * run.results()["knn"] for run in runs], rel=1e-3)
    drawn = page.locator("#accuracy .bars .point path").all()
    assert sum((path.bounding_box() or {"width": 0})["width"] > 5 for path in drawn) == 2
    assert page.locator("section:has(h2:text('Alarms'))").is_visible()
    assert "run.method" in page.locator("section:has(h2:text('Configuration'))").inner_text()


def test_light_and_dark_have_their_own_colours(page: Page) -> None:
    def colours() -> Any:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.getElementById('ranks-0').data.find((t) => t.name === 'online').line.color]"
        )

    light = colours()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    dark = colours()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.locator("#theme").click()
    assert colours() == light
    page.emulate_media(color_scheme="light")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")  # once the figures have followed
    box = page.locator("#ranks-0 svg.main-svg").first.bounding_box()
    assert box is not None
    assert 250 < box["width"] <= 390
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_run_that_has_just_begun_and_one_without_spectra_are_reported_as_they_are(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    begun, old = RunFolder(tmp_path / "begun"), RunFolder(tmp_path / "old")
    for folder in (begun, old):
        folder.path.mkdir()
        shutil.copy(runs[0].path / "config.yaml", folder.path)
    shutil.copy(runs[0].metrics_file, old.path)
    with old.metrics_file.open("a") as file:
        file.write("8,1.0,0.5")  # a row half written
    page = report_page([begun, old])
    assert page.count("No reading yet.") == 1
    assert page.count("This run kept no spectra.") == 6
    assert "0 of 8 steps" in page
    assert "8 of 8 steps" in page
    assert "No run has these results yet." in page
    assert "simsiam (begun)" in page


def test_runs_of_one_name_are_told_apart(runs: list[RunFolder], tmp_path: Path) -> None:
    twin = RunFolder(tmp_path / "other" / "simsiam")
    shutil.copytree(runs[0].path, twin.path)
    page = report_page([runs[0], twin])
    assert f"simsiam ({runs[0].path})" in page
    assert f"simsiam ({twin.path})" in page


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_run_given_twice_and_a_file_that_cannot_be_written_are_named(
    runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs[0].path)
    assert main(["report", run, f"{run}/", "--out", str(tmp_path / "report.html")]) == 2
    assert "is given 2 times" in capsys.readouterr().err
    assert main(["report", run, "--out", str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err.lower()


def test_a_run_s_name_is_text_and_not_markup(runs: list[RunFolder], tmp_path: Path) -> None:
    shutil.copytree(runs[0].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.write_config(dataclasses.replace(folder.saved(), title="</script><b>x"))
    page = report_page([folder])
    assert "</script><b>x" not in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page


def test_a_branch_that_died_is_drawn_without_numbers(runs: list[RunFolder], tmp_path: Path) -> None:
    shutil.copytree(runs[0].path, tmp_path / "dead")
    folder = RunFolder(tmp_path / "dead")
    folder.spectra_file.unlink()
    folder.add_spectra(at_step(7, gaussian(8, 4), torch.zeros(8, 4)))
    folder.metrics_file.write_text(
        "step,epoch,loss,erank_online,erank_target,rank_difference\n0,0,1,2.0,nan,nan\n1,0.5,1,nan,nan,nan\n"
    )
    assert "the target is zero" in report_page([folder])


def test_ten_runs_fit_in_six_megabytes(runs: list[RunFolder], tmp_path: Path) -> None:
    pair = at_step(0, gaussian(512, 256), gaussian(512, 256, seed=1))
    folders = [RunFolder(tmp_path / f"run{i}") for i in range(10)]
    head, *rows = runs[0].metrics_file.read_text().splitlines()
    for folder in folders:
        shutil.copytree(runs[0].path, folder.path)
        for step in range(40):
            folder.add_spectra(dataclasses.replace(pair, step=step))
        many = [f"{i},{rows[i % len(rows)].partition(',')[2]}" for i in range(2000)]
        folder.metrics_file.write_text("\n".join([head, *many]) + "\n")
    out = tmp_path / "pages" / "report.html"
    write_report(folders, out)
    assert out.stat().st_size < 6e6
    figures = json.loads(out.read_text().split('id="figures">')[1].split("</script>")[0])
    assert len(figures["ranks-3"]["data"][-1]["x"]) == 400
    assert all(math.isfinite(y) for frame in figures["filter-0"]["frames"] for y in frame["y"][0])
