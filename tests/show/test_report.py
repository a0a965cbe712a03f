"""The report, opened in a real browser where there is one."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page
from torch import Tensor

from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.run.folder import RunFolder
from rankgap.show.report.inline import report
from rankgap.show.report.page import report_page, write_report
from rankgap.show.report.panels import filter_panel, loss_panel
from rankgap.show.report.runs import Run
from rankgap.spectra.pair import PairSpectrum, pair_spectrum
from tests.matrices import gaussian

SHORT = ["--epochs", "2", "--batch-size", "64", "--limit", "256", "--rank-every", "1", "--protocol", "knn"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    home = tmp_path_factory.mktemp("runs")
    folders = [RunFolder(home / method) for method in ("simsiam", "swav")]
    for folder in folders:
        assert main(["train", "--method", folder.name, *SHORT, "--out", str(folder.path)]) == 0
    return folders


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
    page.wait_for_selector(".js-plotly-plot")
    for plot in page.locator(".plot").all():  # they are drawn as they come near
        plot.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length == 12")
    page.evaluate("scrollTo(0, 0)")
    assert [text for text in said if not text.startswith(("data:", "blob:"))] == [out.as_uri()]
    return page


def at_step(step: int, online: Tensor, target: Tensor) -> PairSpectrum:
    return dataclasses.replace(pair_spectrum(online, target), step=step)


def drawn(page: Page, figure: str) -> Locator:
    """A figure, once it has been scrolled to and is up to date."""
    plot = page.locator(f"#{figure}")
    plot.scroll_into_view_if_needed()
    current = "(id) => { const plot = document.getElementById(id); return near.has(plot) && !stale.has(plot); }"
    page.wait_for_function(current, arg=figure)
    return plot


def trace(page: Page, figure: str, name: str) -> dict[str, list[float]]:
    drawn(page, figure)
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


def test_the_page_shows_a_run_s_frozen_start_and_says_what_became_of_it(tmp_path: Path) -> None:
    first, then = (RunFolder(tmp_path / name) for name in ("first", "then"))
    assert main(["train", *SHORT, "--out", str(first.path)]) == 0
    assert main(["train", *SHORT, "--init", f"run:{first.path}", "--out", str(then.path)]) == 0
    scores = {"knn": 0.612, "erank_features": 9.0}
    for knn, worse in ((0.648, False), (0.6, False), (0.45, True)):  # 355 test images
        then.write_results(then.results() | {"knn": knn, "erank_features": 10.0, "start": scores})
        page = report_page([first, then])
        (said,) = re.findall("<small>(Since its frozen start: .*?)</small>", page)
        assert said == f"Since its frozen start: kNN 61.2 -&gt; {100 * knn:.1f}, erank features 9.0 -&gt; 10.0"
        assert ("Training lowered the kNN accuracy, so the frozen start is the better encoder." in page) is worse
        (row,) = re.findall(r"<tr><td>frozen start of (.*?)</tr>", page)
        assert [cell for cell in re.sub("<.*?>", " ", row).split() if cell[0].isdigit()][:2] == ["61.2", "9.0"]
        assert f"run:{first.path}" in row


@pytest.mark.parametrize("share", [0.0, 0.52, 1.0])
def test_the_slider_shows_the_spectra_of_its_step(page: Page, runs: list[RunFolder], share: float) -> None:
    first, *others = page.locator(".slider input").all()
    first.fill(str(round(100 * share)))
    assert [slider.input_value() for slider in others] == [str(round(100 * share))] * 2
    said = page.locator(".slider output").all_inner_texts()
    place = "newest reading" if share == 1 else f"after {round(100 * share)}% of training"
    assert said == [place] * 3
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
            energy = now.spectrum_target[: len(gains)].square()
            strong = [i for i in range(len(gains)) if energy[:i].sum() < 0.99 * energy.sum()]
            share_passed = float(gains[0] / now.transfer[strong].max())
            assert shown["y"][0] == (pytest.approx(share_passed, rel=1e-3) if share_passed > 0 else None)
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
    assert (zero["x"], zero["y"]) == ([], [[], []])
    assert zero["note"] == "epoch 0.5: the target is zero"


def test_a_figure_gives_its_data(page: Page, runs: list[RunFolder], tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.locator("figure:has(#ranks-1) button.csv").click()
    assert download.value.suggested_filename == "swav-ranks.csv"
    download.value.save_as(tmp_path / "ranks.csv")
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["series", "epoch", "value"]
    target = [float(row["value"]) for row in rows if row["series"] == "target"]
    assert target == pytest.approx(runs[1].metrics()["erank_target"], rel=1e-3)
    assert {row["series"] for row in rows} == {"online", "target"}


def test_results_alarms_and_configuration_are_read_off_the_page(page: Page, runs: list[RunFolder]) -> None:
    cells = page.locator("section:has(h2:text('Results')) tr:nth-child(2) td").all_inner_texts()
    assert cells[0] == "simsiam"
    assert f"{100 * runs[0].results()['knn']:.1f}" in cells
    drawn(page, "accuracy")
    bars = page.evaluate("document.getElementById('accuracy').data.map((t) => [t.name, Array.from(t.x)])")
    assert dict(bars)["kNN"] == pytest.approx([100 * run.results()["knn"] for run in runs], rel=1e-3)
    shapes = page.locator("#accuracy .bars .point path").all()
    assert sum((path.bounding_box() or {"width": 0})["width"] > 5 for path in shapes) == 2
    alarms = page.locator("section:has(h2:text('Alarms'))")
    assert alarms.locator("p").all_inner_texts() == ["No alarm was raised during training."]
    assert "run.method" in page.locator("section:has(h2:text('Configuration'))").inner_text()


def test_light_and_dark_have_their_own_colours(page: Page) -> None:
    def colours() -> Any:
        drawn(page, "ranks-0")
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
    head = page.locator("#results th").nth(1)
    assert head.inner_text() == "rank difference"
    place = head.bounding_box()
    assert place is not None
    assert place["x"] + place["width"] <= 390
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
    assert page.count('class="empty">No reading yet.') == 2
    assert page.count("No spectra yet.") == 6  # neither has ended
    assert "0 of 8 steps" in page
    assert "8 of 8 steps" in page
    assert "No run has these results yet." in page
    assert "simsiam (begun)" in page


def test_a_run_that_ended_without_accuracies_is_not_said_to_get_them(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    ended = RunFolder(tmp_path / "ended")
    shutil.copytree(runs[0].path, ended.path)
    results = json.loads((ended.path / "results.json").read_text())
    del results["knn"], results["sets"]
    (ended.path / "results.json").write_text(json.dumps(results))
    page = report_page([ended])
    assert "No run has these results." in page
    assert "erank features: exp entropy" in page
    assert "weighted kNN" not in page  # a protocol by which nothing was measured


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
    for out, says in ((tmp_path, "directory"), (tmp_path / "report.pdf", ".html"), (tmp_path / "report", ".html")):
        assert main(["report", run, "--out", str(out)]) == 2
        assert says in capsys.readouterr().err


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


def test_the_last_rank_is_one_number_wherever_it_is_written(page: Page, runs: list[RunFolder]) -> None:
    page.locator(".slider input").first.fill("100")
    for index, run in enumerate(runs):
        for branch in ("online", "target"):
            (rank,) = run.metrics()[f"erank_{branch}"][-1:]
            assert trace(page, f"ranks-{index}", branch)["y"][-1] == pytest.approx(rank, rel=1e-3)
            trace(page, f"spectra-{index}", branch)
            note = page.locator(f"figure:has(#spectra-{index}) small").inner_text()
            assert f"{rank:.2f} {branch}" in note
            assert f"{rank:.1f}" in page.locator(f"#results tr:nth-child({index + 2})").inner_text().split("\t")


def test_the_loss_and_the_learning_rate_are_drawn(page: Page, runs: list[RunFolder], tmp_path: Path) -> None:
    for index, run in enumerate(runs):
        metrics = run.metrics()
        for name, column in (("loss", "loss"), ("learning rate", "lr")):
            shown = trace(page, f"loss-{index}", name)
            assert shown["x"] == pytest.approx(metrics["epoch"], rel=1e-3)
            assert shown["y"] == pytest.approx(metrics[column], rel=1e-3)
    shutil.copytree(runs[0].path, tmp_path / "old")
    old = RunFolder(tmp_path / "old")
    old.metrics_file.write_text("step,epoch,loss,erank_online,erank_target,rank_difference\n0,0,1,2,3,1\n")
    figure = loss_panel(Run(old, "a run of an early release"), 0).figure
    assert figure is not None
    assert [trace.name for trace in figure.data] == ["loss"]


PLAIN = r"-?[\d,]*\.?\d+"


@pytest.mark.parametrize(
    ("figure", "says"),
    [
        ("ranks-0", r"epoch \d+\.\d, (online|target) \d+\.\d"),
        ("loss-0", rf"epoch \d+\.\d, (loss|learning rate) {PLAIN}"),
        ("spectra-0", rf"singular value \d+, (online|target) {PLAIN}"),
        ("filter-0", rf"singular value {PLAIN}, (measured gain|transfer) {PLAIN}"),
        ("alignment-0", rf"eigenvector \d+, alignment {PLAIN}"),
        ("accuracy", r"simsiam: (kNN|linear) \d+\.\d"),
        ("speed", r"simsiam: images/s [\d,]+"),
    ],
)
def test_numbers_on_axes_and_under_the_pointer_are_plain(page: Page, figure: str, says: str) -> None:
    plot = drawn(page, figure)
    for axis in "xy":
        ticks = [text for text in plot.locator(f".{axis}tick text").all_text_contents() if text != "simsiam"]
        ticks = [text.replace("\u2212", "-") for text in ticks if text != "swav"]
        assert all(re.fullmatch(PLAIN, text) for text in ticks), ticks
        assert (axis == "y" and figure in ("accuracy", "speed")) or len(ticks) > 1
    bar = plot.locator(".bars .point path")
    box = (bar.first if bar.count() else plot.locator(".nsewdrag").first).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f"#{figure} .hovertext")
    said = plot.locator(".hovertext .nums").first.text_content() or ""
    assert re.fullmatch(says, said.replace("\u2212", "-")), said
    page.mouse.move(0, 0)


def test_a_figure_is_saved_as_an_svg_named_after_its_run(page: Page, tmp_path: Path) -> None:
    drawn(page, "loss-1")
    with page.expect_download() as download:
        page.locator("figure:has(#loss-1) button.svg").click()
    assert download.value.suggested_filename == "swav-loss.svg"
    download.value.save_as(tmp_path / "loss.svg")
    root = ElementTree.parse(tmp_path / "loss.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    note = page.locator("figure:has(#loss-1) small").inner_text()
    assert {"swav", note, "loss", "learning rate", "epoch"} <= {"".join(text.itertext()) for text in root.iter()}


def test_the_keyboard_moves_all_sliders(page: Page) -> None:
    first, second, _ = page.locator(".slider input").all()
    first.fill("100")
    second.focus()
    page.keyboard.press("ArrowLeft")
    assert first.input_value() == second.input_value() == "96"
    assert second.get_attribute("aria-valuetext") == "after 96% of training"
    assert second.get_attribute("aria-label") == "Measured filter of all runs, share of training"
    page.keyboard.press("Home")
    assert first.input_value() == "0"
    assert trace(page, "spectra-1", "online")["x"]
    assert page.locator("figure:has(#spectra-1) small").inner_text().startswith("epoch 0.0: ")
    first.fill("100")


WIDTHS = "plots.map((plot) => plot.querySelector('svg.main-svg').clientWidth)"


def test_a_wide_window_is_used(page: Page) -> None:
    for width in (1920, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(f"document.querySelector('main').clientWidth > {0.93 * width}")
        # Two runs: each figure takes half the window, but is not drawn out beyond 48 rem.
        page.wait_for_function(f"{WIDTHS}.slice(0, 10).every((w) => Math.abs(w - {min(width / 2, 810)}) < 75)")


def test_paper_gets_every_figure_in_light(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(WIDTHS) == [325] * 10 + [690] * 2
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_function(f"{WIDTHS}.every((w) => w > 500)")
    page.emulate_media(color_scheme="light")


USED = {"rank": 1.94, "of": 256}
VERDICT = {
    "kind": "collapsed",
    "outputs": USED,
    "features": None,
    "saw": "the rank is <low>",
    "cause": "x",
    "knob": "do y",
}


def with_verdict(run: RunFolder, path: Path, verdict: dict[str, Any] | None) -> RunFolder:
    shutil.copytree(run.path, path)
    folder = RunFolder(path)
    kept = {name: value for name, value in folder.results().items() if name != "verdict"}
    folder.write_results(kept if verdict is None else kept | {"verdict": verdict})
    return folder


def test_the_verdict_comes_first_in_words_and_colour(
    runs: list[RunFolder], browser: Browser, tmp_path: Path
) -> None:
    folders = [
        with_verdict(runs[0], tmp_path / "collapsed", VERDICT),
        with_verdict(runs[0], tmp_path / "shrinking", VERDICT | {"kind": "shrinking", "features": USED}),
        with_verdict(runs[0], tmp_path / "healthy", {"kind": "healthy", "outputs": {"rank": 41.26, "of": 2048}}),
        with_verdict(runs[0], tmp_path / "old", None),
        with_verdict(runs[0], tmp_path / "unfinished", None),
    ]
    (folders[-1].path / "results.json").unlink()
    write_report(folders, tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("section").first.get_attribute("id") == "verdicts"
    assert (
        page.locator("#verdicts > p").inner_text() == "1 collapsed, 1 shrinking, 1 healthy, 2 without a verdict."
    )
    lines = page.locator("#verdicts li").all()
    said = [line.locator("b").inner_text() for line in lines]
    assert said == [
        "✕ collapsed: the outputs use 1.9 of 256 dimensions",
        "▼ shrinking: the outputs use 1.9 of 256 dimensions, the features 1.9 of 256",
        "✓ healthy: the outputs use 41 of 2048 dimensions",
        "… no verdict: its results were written before verdicts existed",
        "… no verdict: the run has not finished",
    ]
    why = [line.locator("small").inner_text() for line in lines]
    assert why[0] == "The rank is <low>. Likely cause: x. First, do y."
    assert why[2] == ""
    assert why[4].startswith("The latest diagnosis is healthy at step 7")
    assert lines[1].locator("i").inner_text() == "simsiam (shrinking)"
    alarms = page.locator("#alarms p").all_inner_texts()
    assert alarms[0] == "No alarm so far."  # one of them has not ended
    assert alarms[1].startswith(
        "Not healthy at the end, without an alarm: simsiam (collapsed), simsiam (shrinking)."
    )
    colours = [line.locator("b").evaluate("(b) => getComputedStyle(b).color") for line in lines]
    assert len(set(colours[:4])) == 4
    page.close()


@pytest.mark.parametrize(
    ("verdict", "says"),
    [({"kind": "fine", "outputs": USED}, "kind"), ({"kind": "healthy"}, "outputs"), ([], "verdict")],
)
def test_a_verdict_that_is_none_of_ours_is_named(
    verdict: Any, says: str, runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_verdict(runs[0], tmp_path / "run", verdict)
    assert main(["report", str(folder.path), "--out", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert "results.json.verdict" in error
    assert says in error


def test_zero_never_has_a_minus(runs: list[RunFolder], tmp_path: Path) -> None:
    folder = with_verdict(runs[0], tmp_path / "run", VERDICT | {"outputs": {"rank": -0.0, "of": 2}})
    folder.write_results(folder.results() | {"rank_difference": -0.04, "erank_features": -0.0})
    head, *rows = folder.metrics_file.read_text().splitlines()
    assert head.startswith("step,epoch,loss,erank_online,erank_target")
    last = ["8", "1.9", "-0.00000001", "2.001", "2.0", *rows[-1].split(",")[5:]]
    folder.metrics_file.write_text("\n".join([head, *rows, ",".join(last)]) + "\n")
    page = report_page([folder])
    body = page[page.index("<main") : page.index("</main>")]
    assert "-0.0<" not in body
    assert "-0.00" not in body
    assert "rank difference +0.00" in body


def test_a_folder_of_runs_stands_for_all_runs_below_it(
    runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs"
    for name in ("b", "sweep/a", "sweep/c"):
        shutil.copytree(runs[0].path, home / name)
    for folder in ("notes/deep", "foreign", "damaged", ".cache"):
        (home / folder).mkdir(parents=True)
    (home / "ranks.png").write_bytes(b"")
    (home / "foreign" / "config.yaml").write_text("model: {hidden: 3}\n")
    (home / "damaged" / "config.yaml").write_text("format: [")
    out = tmp_path / "report.html"
    assert main(["report", str(home), str(runs[1].path), "--out", str(out)]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert said.count("skipped:") == 1
    for name in ("notes contains no run", "foreign/config.yaml", "damaged/config.yaml"):
        assert said.replace(" ", "").count(name.replace(" ", "")) == 1
    assert ".cache" not in said
    assert "ranks.png" not in said
    page = out.read_text()
    assert "4 runs side by side" in page
    labels = ["simsiam (b)", "simsiam (a)", "simsiam (c)", "swav"]
    places = [page.index(f"<i>{label}</i>") for label in labels]
    assert places == sorted(places)


def test_a_folder_without_any_run_is_an_error_even_beside_runs(
    runs: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report.html"
    for path in ("empty", "nowhere"):
        assert main(["report", str(runs[0].path), str(tmp_path / path), "--out", str(out)]) == 2
        assert f"{path} is not a run folder" in capsys.readouterr().err
    assert not out.exists()


def test_names_are_shown_as_they_are(runs: list[RunFolder], browser: Browser, tmp_path: Path) -> None:
    folders = []
    for i, name in enumerate(["<img src=x>&amp;", "a  b", "q\"'uote", "caf\udce9", "</script><!--", "$style"]):
        shutil.copytree(runs[0].path, tmp_path / f"run{i}" if "/" in name else tmp_path / name)
        folders.append(RunFolder(tmp_path / f"run{i}" if "/" in name else tmp_path / name))
        folders[i].write_config(dataclasses.replace(folders[i].saved(), title=name if "/" in name else "run"))
    write_report(folders, tmp_path / "report.html")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    shown = ["<img src=x>&amp;", "a  b", "q\"'uote", r"caf\xe9", "</script><!--", "$style"]
    shown = [name if "/" in name else f"run ({name})" for name in shown]
    assert page.locator("#verdicts i").all_inner_texts() == shown
    for index, name in enumerate(shown):
        assert page.locator(f"figure:has(#ranks-{index}) h3").inner_text() == name
    drawn(page, "accuracy")
    ticks = page.locator("#accuracy .ytick text").all_text_contents()
    assert [text.replace("\u00a0", " ") for text in ticks] == shown
    assert errors == []
    page.close()


def test_ten_runs_fit_in_six_megabytes(runs: list[RunFolder], tmp_path: Path) -> None:
    pair = at_step(0, gaussian(512, 256), gaussian(512, 256, seed=1))
    folders = [RunFolder(tmp_path / f"run{i}") for i in range(10)]
    head, *rows = runs[0].metrics_file.read_text().splitlines()
    for folder in folders:
        shutil.copytree(runs[0].path, folder.path)
        folder.spectra_file.unlink()
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


def test_a_report_on_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run folder, or folder of runs, and got none"):
        report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
