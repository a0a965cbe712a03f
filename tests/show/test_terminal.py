"""The terminal shows text as it is, whatever it looks like."""

from __future__ import annotations

import math

import pytest

from rankgap.show.columns import KNN, RANK_DIFFERENCE, RESULTS, SPEED
from rankgap.show.terminal import console, say, show_results

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
