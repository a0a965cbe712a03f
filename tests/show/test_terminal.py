"""The terminal shows text as it is, whatever it looks like."""

from __future__ import annotations

import math

import pytest

from rankgap.evaluate.scores import SCORES, Rated, RunScores
from rankgap.show.columns import KNN, RANK_DIFFERENCE, RESULTS, SPEED
from rankgap.show.terminal import ACROSS, console, say, show_methods, show_results, show_scores

ODD = "[bold]a[/red] :warning: \\[b]"  # markup that rich could not parse, an emoji's name, an escape


def test_titles_and_names_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 300)  # no line is broken
    alarm = {"kind": "complete", "step": 3, "saw": ODD, "cause": "c", "knob": "k"}
    sets = {"test": {"knn": 0.1}, f"{ODD}set": {"knn": 0.25}}
    show_results({ODD: {"knn": 0.5, "alarms": [alarm], "protocol": {"knn": ODD}, "sets": sets}})
    say(("picture:", "bold"), f" {ODD}", wrap=False)
    shown = capsys.readouterr().out
    assert shown.count(ODD) == 6
    assert f"{ODD}set: knn 25.0" in shown
    assert f"picture: {ODD}" in shown


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_cuts_off_no_name_and_no_number(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", width)
    row = {column.key: 0.125 + number for number, column in enumerate(RESULTS)}
    show_results({"symsimsiam": row | {"verdict": {"kind": "collapsed", "outputs": {"rank": 1.5, "of": 32}}}})
    shown = capsys.readouterr().out
    assert {"method", "symsimsiam", "collapsed", *(column.cell(row) for column in RESULTS)} <= {*shown.split()}
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("erank is the effective rank") == 1


def test_protocols_name_their_numbers_and_are_left_out_where_nothing_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {"erank_features": "exp entropy", "knn": "k 20", "linear": "L-BFGS", "rankme_features": "RankMe"}
    further = {"sets": {"more": {"linear": 0.5}}}  # measured there alone
    show_results({"byol": {"erank_features": 1.5, "rankme_features": 12.0, "protocol": said, **further}})
    shown = capsys.readouterr().out
    assert "linear %: L-BFGS\nerank features: exp entropy\n" in shown
    assert "k 20" not in shown
    assert "RankMe" not in shown


def test_a_path_is_not_broken_into_lines(capsys: pytest.CaptureFixture[str]) -> None:
    path = "runs/" + 40 * "long/"
    say(f"picture: {path}", wrap=False)
    assert capsys.readouterr().out == f"picture: {path}\n"


def test_a_cell_has_its_column_s_form_and_a_dash_where_nothing_is_known() -> None:
    row = {"knn": 0.3534, "rank_difference": -1.25, "images_per_second": 1234.5, "linear": math.nan}
    assert [column.cell(row) for column in RESULTS] == ["35.3", "-", "-", "-", "-1.2", "-", "1,234"]
    assert KNN.scaled(row) == pytest.approx(35.34)
    assert math.isnan(KNN.scaled({"knn": None}))
    assert (RANK_DIFFERENCE.text(None), SPEED.text(0.4)) == ("-", "0")


def scored(checkpoints: int) -> RunScores:
    """A run whose later checkpoints have higher scores, the last one under two names."""
    steps = {f"epoch-{i:04d}": 1_000 * i for i in range(1, checkpoints + 1)} | {"last": 1_000 * checkpoints}
    rated = {name: {score: Rated(step / 1_000, 0.1) for score in SCORES} for name, step in steps.items()}
    return RunScores(title="byol", images=2_048, steps=steps, rated=rated)


@pytest.mark.parametrize("checkpoints", [1, 5, 100])
def test_the_scores_that_compare_checkpoints_fit_a_screen(
    checkpoints: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    show_scores(scored(checkpoints))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert "…" not in out
    said = [line.split(":")[0] if checkpoints > 1 else line.partition(" ")[0] for line in lines]
    assert {"RankMe", "alpha-ReQ", "LiDAR"} <= {*said}
    assert "uniformity" not in said
    assert ("prefers" in out) == (checkpoints > 1)
    assert ("A single checkpoint cannot be compared" in out) == (checkpoints == 1)
    assert f"epoch-{checkpoints:04d}" in out


def test_all_scores_of_all_checkpoints_are_shown_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    show_scores(scored(30), everything=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.strip().startswith("epoch-0017") for line in lines) == math.ceil(len(SCORES) / ACROSS)
    for name, score in SCORES.items():
        (said,) = (line for line in lines if line.startswith((f"{name}: ", f"{name} {score.valid[:12]}")))
        assert said.startswith(f"{name}: prefers") == (score.best is not None)


def test_scores_that_were_left_out_are_not_shown_and_an_unknown_interval_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    rated = {"last": {"RankMe": Rated(3.25, math.nan), "LiDAR": Rated(math.nan, math.nan)}}
    show_scores(RunScores(title="byol", images=100, steps={"last": 1}, rated=rated), everything=True)
    out = capsys.readouterr().out
    assert ["last", "1", "3.25", "-"] in lines_of(out)
    assert "DSE" not in out
    assert "nan" not in out


def test_tables_fit_eighty_columns_without_cutting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    show_methods()
    numbers = {column.key: 12_345.678 for column in RESULTS} | {"knn": 1.0, "linear": 1.0, "threads": 1}
    show_results({"directset online power:0.5 target power:-0.5": numbers, "byol": numbers})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "centred_assignment" in out
    assert out.count("threads: 1 (") == 1


def lines_of(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


def test_a_frozen_start_stands_below_its_run_and_its_change_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 200)
    start = {"knn": 0.612, "linear": 0.7, "erank_features": 10.0}
    better = {"knn": 0.648, "linear": 0.69, "erank_features": 12.0, "images_per_second": 5.0, "start": start}
    worse = better | {"knn": 0.6109}
    show_results({"a": better, "b": worse, "c": {"knn": 0.5}})
    out = capsys.readouterr().out
    rows = [row for row in lines_of(out) if row and row[0] in ("a", "frozen", "b", "c")]
    assert rows[:5] == [
        ["a", "-", "64.8", "69.0", "-", "-", "-", "12.0", "5"],
        ["frozen", "start", "61.2", "70.0", "-", "-", "-", "10.0", "-"],
        ["b", "-", "61.1", "69.0", "-", "-", "-", "12.0", "5"],
        ["frozen", "start", "61.2", "70.0", "-", "-", "-", "10.0", "-"],
        ["c", "-", "50.0", "-", "-", "-", "-", "-", "-"],
    ]
    assert "a since its frozen start: kNN 61.2 -> 64.8, linear 70.0 -> 69.0, erank features 10.0 -> 12.0" in out
    assert "warning: b: training lowered the kNN accuracy, so the frozen start is the better encoder" in out
    assert "warning: a" not in out
    assert "c since" not in out


@pytest.mark.parametrize(("rank", "warned"), [(9.4, True), (9.6, False), (10.5, False), (None, False)])
def test_without_labels_a_rank_that_fell_is_said(
    rank: float | None, warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 300)
    show_results({"a": {"erank_features": rank, "start": {"erank_features": 10.0}}})
    out = capsys.readouterr().out
    assert ("warning: a: training lowered the effective rank of the features" in out) is warned
    assert ("a since its frozen start: erank features 10.0 -> " in out) is (rank is not None)
