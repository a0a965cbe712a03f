"""What notebooks show: well-formed, small HTML for every object, and the three notebooks of the docs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import rankgap as rg
from rankgap.cli import main
from rankgap.notebook import POINTS, curves, summary, thin
from rankgap.run.folder import RunFolder
from rankgap.spectra.pair import pair_spectrum
from rankgap.theory.design import assess
from rankgap.theory.reference import reference_spectrum
from rankgap.training import TrainedRun
from rankgap.watch.reading import Reading
from rankgap.watch.verdict import Use, Verdict
from tests.matrices import gaussian

SVG = "{http://www.w3.org/2000/svg}"
SMALL = 30_000  # characters


def parsed(html: str) -> ElementTree.Element:
    """The tree of a piece of HTML, which must be well-formed, without scripts, and small."""
    assert len(html) < SMALL
    tree = ElementTree.fromstring(html)
    assert not list(tree.iter("script"))
    return tree


def facts(html: str) -> dict[str, str]:
    """The table's rows."""
    cells = [cell.text or "" for cell in parsed(html).iter("td")]
    return dict(zip(cells[::2], cells[1::2], strict=True))


def points(html: str) -> list[int]:
    """The number of points of each curve; the axes come last."""
    *drawn, _ = parsed(html).iter(f"{SVG}path")
    return [len(path.get("d", "").replace("M", "L").split("L")) - 1 for path in drawn]


def readings(ranks: Sequence[float]) -> list[Reading]:
    return [
        Reading(step, erank_online=rank, erank_target=2 * rank, rank_difference=rank, rows=8)
        for step, rank in enumerate(ranks)
    ]


def test_text_is_escaped_and_may_hold_any_character() -> None:
    odd = "<img src=x> & 'q\"\x00\x1b\udce9\ufffe"
    html = summary(odd, {odd: odd, "left out": ""}, curves([0, 1], {odd: [1.0, 2.0]}, over=odd, of=odd))
    assert "<img" not in html
    shown = r"""<img src=x> & 'q"\x00\x1b\udce9\ufffe"""
    tree = parsed(html)
    assert tree.findtext("div/b") == shown
    assert facts(html) == {shown: shown}
    assert shown in "".join(next(tree.iter(f"{SVG}svg")).itertext())


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([3.0], 2),  # a dot: a line from a point to itself
        ([1.0, 2.0, 4.0], 4),
        ([1.0, math.nan, 4.0], 4),
        ([math.inf, 2.0, 0.0, -1.0, 4.0, 5.0, 1e308], 5),
        ([5.0, 5.0], 3),
    ],
)
def test_a_curve_has_gaps_where_it_has_no_number(values: list[float], drawn: int) -> None:
    html = curves(range(len(values)), {"online": values}, over="step", of="rank")
    assert points(html) == [drawn]
    assert "nan" not in html
    assert "inf" not in html


@pytest.mark.parametrize("values", [[], [math.nan], [0.0, -3.0, math.inf]])
def test_without_a_number_there_is_no_picture(values: list[float]) -> None:
    assert curves(range(len(values)), {"online": values}, over="step", of="rank") == ""


def test_a_curve_is_where_its_axes_say() -> None:
    html = curves([0, 50, 100], {"target": [1.0, 10.0, 100.0]}, over="step", of="rank")
    path = next(parsed(html).iter(f"{SVG}path")).get("d", "")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in path.removeprefix("M").split("L")[1:])
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)  # 10 lies midway between 1 and 100 on a logarithmic axis
    assert y0 > y2
    texts = [text.text for text in parsed(html).iter(f"{SVG}text")]
    assert {"0", "100", "1", "step"} <= set(texts)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (10_000, 200)])
def test_thinning_keeps_the_ends_and_the_order(count: int, most: int) -> None:
    kept = thin(count, most)
    assert len(kept) == min(count, most)
    assert sorted(set(kept)) == kept
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_a_monitor_shows_its_newest_reading_and_both_curves() -> None:
    monitor = rg.RankMonitor(every=1)
    assert "none yet: " in facts(monitor._repr_html_())["readings"]
    for seed in range(6):
        monitor.update(gaussian(32, 8, seed=seed), gaussian(32, 8, seed=seed + 10))
    shown, newest = facts(monitor._repr_html_()), monitor.history[-1]
    assert shown["newest reading"] == "step 5, of 32 rows"
    assert shown["effective rank"] == f"online {newest.erank_online:.2f}, target {newest.erank_target:.2f}"
    assert shown["diagnosis"] == "healthy at step 5"
    assert "left out" not in shown
    assert points(monitor._repr_html_()) == [7, 7]
    assert repr(monitor).startswith("<rankgap.watch.monitor.RankMonitor")


def test_a_monitor_says_what_was_left_out_and_why_it_ended() -> None:
    monitor = rg.RankMonitor(every=1)
    monitor.update(gaussian(32, 8), gaussian(32, 6))
    assert "(32, 8)" in facts(monitor._repr_html_())["left out"]
    monitor.update(gaussian(32, 8) * math.nan, gaussian(32, 6))
    assert "non-finite" in facts(monitor._repr_html_())["diagnosis"]


@pytest.mark.parametrize("ranks", [[1 + i % 7 / 3 for i in range(10_000)], [math.nan] * 10_000])
def test_ten_thousand_readings_stay_small(ranks: list[float]) -> None:
    monitor = rg.RankMonitor()
    monitor.resume(readings(ranks))
    assert len(monitor.history) == 10_000
    tree = parsed(monitor._repr_html_())
    assert all(len(path.get("d", "").split("L")) <= POINTS + 1 for path in tree.iter(f"{SVG}path"))


def test_a_pair_shows_the_table_that_it_prints() -> None:
    target = gaussian(64, 8)
    pair = pair_spectrum(target @ torch.diag(torch.linspace(1, 0.1, 8).double()), target)
    html = pair._repr_html_()
    assert [f"{name:<24}{value}" for name, value in facts(html).items()] == repr(pair).splitlines()
    assert points(html) == [9, 9]
    dead = pair_spectrum(gaussian(8, 4), torch.zeros(8, 4))
    assert facts(dead._repr_html_())["eigenspace alignment"] == "left out: the target is zero"


def test_a_verdict_shows_its_parts() -> None:
    verdict = Verdict(
        kind="collapsed", outputs=Use(rank=1.0, of=8), saw="the rank is <low>", cause="x", knob="do y"
    )
    html = verdict._repr_html_()
    assert parsed(html).findtext("div/b") == "Verdict: collapsed"
    assert facts(html) == {
        "dimensions": "the outputs use 1 of 8 dimensions",
        "saw": "the rank is <low>",
        "likely cause": "x",
        "first": "do y",
    }


@pytest.mark.parametrize(("online", "warns"), [("power:0.5", False), ("power:-1.5", True)])
def test_an_assessment_shows_its_facts_warnings_and_flow(online: str, warns: bool) -> None:
    found = assess(online, None, reference_spectrum())
    html = found._repr_html_()
    shown = facts(html)
    assert shown.pop("warning", "").splitlines() == found.warnings()
    assert bool(found.warnings()) == warns
    assert shown == found.facts()
    assert points(html) == [len(found.flow.times) + 1, len(found.baseline.times) + 1]


def test_a_run_shows_its_verdict_accuracy_and_curve(tmp_path: Path) -> None:
    short = ["--epochs", "1", "--batch-size", "64", "--limit", "256", "--rank-every", "1", "--protocol", "knn"]
    run = RunFolder(tmp_path / "run")
    assert main(["train", *short, "--out", str(run.path)]) == 0
    html = TrainedRun(run.path, run.results())._repr_html_()
    assert html == run._repr_html_()
    assert facts(html) == {
        "folder": str(run.path),
        "steps": "4",
        "verdict": str(run.verdict()),
        "accuracy": f"kNN {100 * run.results()['knn']:.1f}%",
    }
    assert points(html) == [5, 5]
    (run.path / "results.json").unlink()
    run.metrics_file.write_text("\n".join(run.metrics_file.read_text().splitlines()[:2]) + "\n")
    assert facts(run._repr_html_())["steps"] == "1 of 4"
    run.metrics_file.unlink()
    assert facts(run._repr_html_())["steps"] == "no reading yet, none of 4"
    run.config_file.write_text("format: [")
    assert "config.yaml" in facts(run._repr_html_())["cannot be shown"]
