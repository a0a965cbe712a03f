from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from rankgap.data.scanning import SOFTWARE
from rankgap.errors import UserError
from rankgap.show.figures import RankTrace, ResultRow, mini_figure, ranks_figure, save
from rankgap.show.pair_figures import alignment_figure, filters_figure, largest_passed
from rankgap.show.sheet import contact_sheet, shorten
from rankgap.spectra.pair import pair_spectrum
from rankgap.watch.reading import Reading
from tests.matrices import gaussian


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def trace(name: str = "simsiam", knn: float | None = 0.353) -> RankTrace:
    return RankTrace(name, [0, 1, 2, 3], [1.5, 4.0, 9.0, 3.0], [2.0, 8.0, 20.0, 2.5], knn)


@pytest.mark.parametrize(
    ("name", "begins"),
    [("a.png", b"\x89PNG\r\n"), ("b.PNG", b"\x89PNG\r\n"), ("c.pdf", b"%PDF-"), ("d.svg", b"<?xml")],
)
def test_the_suffix_chooses_the_format(name: str, begins: bytes, tmp_path: Path) -> None:
    save(Figure(), tmp_path / "new" / name)
    content = (tmp_path / "new" / name).read_bytes()
    assert content.startswith(begins)
    assert SOFTWARE.encode() in content
    assert (b"<svg" in content) == name.endswith("svg")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.jpg", "ends in .jpg: the file name must end in .png, .pdf or .svg"),
        ("picture", "has no suffix"),
        (".png", "has no suffix"),
        ("", "is a directory: name a file in it"),
    ],
)
def test_a_name_that_is_no_picture_s_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        save(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_s_history_becomes_a_figure_without_a_file() -> None:
    history = [Reading(step, 2.0 + step, 3.0 + step) for step in (0, 10, 20)] + [Reading(30, finite=False)]
    (axes,) = ranks_figure([RankTrace.of("mine", history)], x_label="step").axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    np.testing.assert_array_equal(lines["online"], [[0, 2], [10, 12], [20, 22], [30, math.nan]])
    np.testing.assert_array_equal(lines["target"][:3], [[0, 3], [10, 13], [20, 23]])
    assert ranks_figure([RankTrace.of("none yet", [])]).axes


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_ranks_figure_has_a_panel_a_run_and_is_readable(count: int, tmp_path: Path) -> None:
    figure = ranks_figure([trace(f"run {i}") for i in range(count)], tmp_path / "new" / "ranks.png")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == [f"run {i}" for i in range(count)]
    width, height = png_size(tmp_path / "new" / "ranks.png")
    assert 600 <= width <= 1300
    assert 300 <= height <= 1300


def test_ranks_figure_draws_the_given_numbers(tmp_path: Path) -> None:
    run = trace()
    (axes,) = ranks_figure([run], tmp_path / "ranks.png", x_label="step").axes
    lines = {str(line.get_label()): line for line in axes.lines}
    np.testing.assert_array_equal(lines["online"].get_xydata(), np.column_stack([run.step, run.erank_online]))
    np.testing.assert_array_equal(lines["target"].get_xydata(), np.column_stack([run.step, run.erank_target]))
    assert axes.get_xlabel() == "step"
    assert {t.get_text() for t in axes.texts} == {"kNN 35.3%", "online\n3", "target\n2.5"}


def test_positive_and_negative_rank_differences_are_shaded_apart(tmp_path: Path) -> None:
    (axes,) = ranks_figure([trace()], tmp_path / "ranks.png").axes
    above, below = (np.concatenate([p.vertices for p in area.get_paths()])[:, 0] for area in axes.collections)
    assert (above.min(), below.max()) == (0, 3)
    crossing = 2 + 11 / 11.5
    assert above.max() == pytest.approx(crossing)
    assert below.min() == pytest.approx(crossing)


def test_wide_ranges_of_rank_are_drawn_on_a_shared_logarithmic_axis(tmp_path: Path) -> None:
    narrow = RankTrace("narrow", [0, 1], [2.0, 2.0], [3.0, 3.0])
    wide = RankTrace("wide", [0, 1], [2.0, 20.0], [3.0, 200.0])
    assert ranks_figure([narrow], tmp_path / "a.png").axes[0].get_yscale() == "linear"
    first, second = ranks_figure([narrow, wide], tmp_path / "b.png").axes
    assert (first.get_yscale(), first.get_ylim()) == ("log", second.get_ylim())


def test_ranks_figure_takes_degenerate_runs(tmp_path: Path) -> None:
    nan = math.nan
    runs = [
        RankTrace("one point", [0], [3.0], [5.0], 0.0),
        RankTrace("not finite, and $odd_{name", [0, 1], [nan, nan], [nan, 2.0], nan),
        RankTrace("empty", [], [], []),
    ]
    figure = ranks_figure(runs, tmp_path / "ranks.png")
    assert texts(figure) == ["kNN 0.0%", "online\n3", "target\n5", "target\n2"]
    assert figure.axes[0].lines[0].get_marker() == "o"  # a line of one point would not be seen


def test_end_labels_of_equal_lines_are_kept_apart(tmp_path: Path) -> None:
    (axes,) = ranks_figure([RankTrace("same", [0, 1], [2.0, 3.0], [2.0, 3.0])], tmp_path / "ranks.png").axes
    low, high = sorted(float(t.get_position()[1]) for t in axes.texts)
    assert high - low >= 0.19


def test_mini_figure_orders_rows_by_knn_and_shows_every_seed(tmp_path: Path) -> None:
    rows = [
        ResultRow("best", [0.4, 0.44], [0.45, 0.47], [81.0, 79.0], [165.0, 163.0]),
        ResultRow("unknown", [], [], [], []),
        ResultRow("worst", [0.3, 0.28], [0.32, 0.31], [3.0, 3.2], [2.9, 3.0]),
    ]
    accuracy, ranks = mini_figure(rows, tmp_path / "mini.png").axes
    assert [t.get_text() for t in accuracy.get_yticklabels()] == ["unknown", "worst", "best"]
    drawn = {(round(x, 6), round(y)) for line in accuracy.lines for x, y in points(line)}
    assert {(40, 2), (44, 2), (42, 2), (30, 1), (28, 1), (29, 1), (46, 2)} <= drawn
    arrows = {tuple(x for x, _ in points(line)) for line in ranks.lines}
    assert {(80.0, 164.0), (3.1, 2.95)} <= arrows
    width, height = png_size(tmp_path / "mini.png")
    assert width == 920
    assert 200 < height < 400


@pytest.mark.parametrize(("channels", "side", "view_side"), [(3, 32, 32), (1, 8, 8), (4, 300, 256), (2, 64, 48)])
def test_contact_sheet_shows_images_of_any_kind(channels: int, side: int, view_side: int, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, channels, side, side), dtype=torch.uint8)
    views = torch.rand(2, 3, channels, view_side, view_side)
    figure = contact_sheet(images, views, ["a.png", "b.png", "c.png"], tmp_path / "sheet.png")
    said = " ".join(text.get_text() for text in figure.texts)
    assert ("the first is shown" in said) == (channels == 2)
    assert ("the first three are shown as red, green and blue" in said) == (channels == 4)
    width, height = png_size(tmp_path / "sheet.png")
    assert 560 <= width <= 1600
    assert 200 <= height <= 1000


@pytest.mark.parametrize("count", [1, 5, 24])
@pytest.mark.parametrize(("views", "side"), [(2, 8), (2, 28), (2, 32), (2, 224), (10, 96)])
def test_contact_sheet_fits_a_screen_and_names_every_image(
    count: int, views: int, side: int, tmp_path: Path
) -> None:
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    names = [f"$a$/{i} [red] {'long ' * 30}图.png" for i in range(count)]
    figure = contact_sheet(images, torch.zeros(views, count, 1, side, side), names, tmp_path / "sheet.png")
    width, height = png_size(tmp_path / "sheet.png")
    assert width <= 1600
    assert height <= 1000
    written = [text for text in figure.texts if text.get_text().startswith("$a$/")]
    assert len(written) == count
    places = set()
    for i, text in enumerate(written):
        head, _, tail = text.get_text().partition("…")
        assert names[i].startswith(head)
        assert names[i].endswith(tail)
        assert text.get_text().endswith("图.png")
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        places.add((round(box.x0), round(box.y0)))
    assert len(places) == count


def test_a_name_is_shortened_in_its_middle_and_only_if_it_is_long() -> None:
    assert shorten("abcdefgh", 8) == "abcdefgh"
    assert shorten("abcdefghi", 8) == "abc…fghi"
    assert [len(shorten("x" * 50, n)) for n in (5, 8, 9, 49, 50)] == [5, 8, 9, 49, 50]


def test_contact_sheet_shows_the_pixels_of_image_and_views(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[:, 0] = 255
    views = torch.zeros(2, 1, 3, 16, 16)
    views[0, :, 1] = 1.5  # clipped
    views[1, :, 2] = 1.0
    contact_sheet(images, views, ["a.png"], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {c: n for n, c in sheet.convert("RGB").getcolors(maxcolors=1 << 20) or []}
    assert [colours[c] for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]] == [96 * 96] * 3


def test_alignment_and_filters_are_drawn_as_measured(tmp_path: Path) -> None:
    target = gaussian(40, 12) * torch.logspace(0, -2, 12, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(target, full_matrices=False)
    pairs = {name: pair_spectrum((u * s ** (1 + p)) @ vt, target) for name, p in (("low", 0.5), ("high", -0.5))}
    figure = alignment_figure(pairs, tmp_path / "alignment.png")
    for axes in figure.axes:
        assert [y for _, y in points(axes.lines[0])] == pytest.approx([1.0] * 12)
    assert [axes.get_title("left") for axes in figure.axes] == ["low: mean 1.00", "high: mean 1.00"]
    figure = filters_figure(pairs, tmp_path / "filters.png")
    scores = [axes.get_title("left") for axes in figure.axes[2:]]
    assert scores == ["low-pass score +1.00, of the transfer +1.00", "low-pass score -1.00, of the transfer -1.00"]
    for line in figure.axes[2].lines:  # a true filter's measured gain is its transfer
        low = points(line)
        assert [x for x, _ in low] == pytest.approx((s / s[0]).tolist())
        assert [y for _, y in low] == pytest.approx((s / s[0]).sqrt().tolist())
    energy = s.square() / s.square().sum()
    drawn = [y for _, y in points(figure.axes[0].lines[0])]
    assert drawn == pytest.approx(energy[: len(drawn)].tolist())
    assert 0.9999 <= sum(drawn) < 1
    assert png_size(tmp_path / "filters.png")[0] > 500
    passed = torch.ones(12, dtype=torch.float64)
    passed[-1] = 1e4  # the weakest direction, of less than a hundredth of the energy
    assert largest_passed(pair_spectrum((u * s * passed) @ vt, target)) == pytest.approx(1)
    turned = filters_figure({"turned": pair_spectrum(-target, target)}, tmp_path / "filters.png")
    measured, transfer = turned.axes[1].lines
    assert [y for _, y in points(measured)] == pytest.approx([1.0] * 12)
    assert points(transfer) == []
