from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.filters.gains import AutoPower, Gain
from rankgap.filters.spectral import spectral_filter
from rankgap.show.design_figure import design_figure
from rankgap.spectra.effective_rank import effective_rank, effective_rank_of
from rankgap.spectra.pair import pair_spectrum
from rankgap.theory.design import Assessment, assess
from rankgap.theory.reference import Reference, reference_spectrum
from tests.matrices import with_spectrum

RESULTS = Path(__file__).parents[2] / "benchmarks" / "cifar10_mini" / "results.json"


def falling(power: float, n: int = 64, d: int = 96) -> Reference:
    """The spectrum of a batch of n rows whose eigenvalues fall as a power."""
    energy = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    return Reference("falling", (n * energy / energy.sum()).sqrt(), n, d)


def batch(reference: Reference, seed: int = 0) -> Tensor:
    s = reference.x * math.sqrt(reference.rows)
    return with_spectrum(s, reference.rows, reference.columns, seed)


@pytest.mark.parametrize(
    ("online", "target"), [("power:0.5", None), (None, "power:-0.5"), ("log1p", "1/(s+0.1)"), ("power:-0.3", None)]
)
def test_the_ranks_and_the_score_are_those_of_a_filtered_batch(online: str | None, target: str | None) -> None:
    reference = falling(1)
    found, z = assess(online, target, reference), batch(reference)
    p = z if online is None else spectral_filter(z, online)
    t = z if target is None else spectral_filter(z, target, branch="target")
    assert found.erank == pytest.approx(float(effective_rank(z)), rel=1e-6)
    assert found.erank_online == pytest.approx(float(effective_rank(p)), rel=1e-6)
    assert found.erank_target == pytest.approx(float(effective_rank(t)), rel=1e-6)
    assert found.rank_difference == pytest.approx(float(effective_rank(t) - effective_rank(p)), abs=1e-5)
    assert found.score == pytest.approx(float(pair_spectrum(p, t).low_pass_score), abs=1e-9)
    assert found.ranges["Z"] == pytest.approx(8, rel=1e-9)
    for side, z in (("online", p), ("target", t)):
        if side in found.gains:
            s = torch.linalg.svdvals(z)
            assert found.ranges[side] == pytest.approx(float(s[0] / s[-1]), rel=1e-6)


@pytest.mark.parametrize(
    ("online", "target", "kind", "warning"),
    [
        ("power:0.5", None, "low-pass", None),
        (None, "power:-0.5", "low-pass", None),
        ("power:1", "power:1", "neither low- nor high-pass", r"rank difference is \+0.00, so nothing makes"),
        (
            "power:-0.3",
            None,
            "high-pass",
            "a low-pass belongs on the online branch, a high-pass on the target",
        ),
        (None, "power:0.3", "high-pass", "a low-pass belongs on the online branch"),
        (None, "power:-1.5", "low-pass", r"target power:-1.5: s g\(s\) falls somewhere on this spectrum"),
        ("power:0.01", None, "low-pass", "yet the online rank falls in the linear flow"),
        ("log", None, "low-pass", r"online log is 0 in \d+ of 64 directions, .* log1p lets all through"),
    ],
)
def test_a_pair_s_kind_and_the_warnings_against_it(
    online: str | None, target: str | None, kind: str, warning: str | None
) -> None:
    found = assess(online, target, falling(1))
    assert found.kind == kind
    if warning is None:
        assert found.warnings() == []
        assert found.rate > 0
        assert found.flow.erank_online[-1] > found.flow.erank_online[0]
    else:
        assert any(re.search(warning, each) for each in found.warnings()), found.warnings()


def test_auto_comes_with_the_exponent_that_it_chooses_without_the_null_space() -> None:
    x = torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 0.0], dtype=torch.float64)
    found = assess("log1p", "auto", Reference("steep", x, 5, 5))
    assert found.null == 1
    assert found.names["online"] == "log1p"
    p = float(found.names["target"].removeprefix("auto, here power:"))
    assert -1 < p < -0.5  # as steep a spectrum asks for more than the preferred exponent
    whitened = float(effective_rank_of(torch.ones_like(x[:4])))
    made = (float(effective_rank_of(x[:4] ** (1 + p))) - found.erank) / (whitened - found.erank)
    assert made == pytest.approx(AutoPower().low, abs=0.02)  # p has two digits


def test_an_assessment_is_printed_as_a_table_with_its_warnings() -> None:
    found = assess("power:-0.5", "power:-0.5", reference_spectrum("4,3,2,1"))
    lines = str(found).splitlines()
    assert lines[0] == "online power:-0.5 target power:-0.5"
    assert lines[4] == f"erank           {found.facts()['erank']}"
    assert lines[-1] == f"warning: {found.warnings()[-1]}"
    assert repr(found) == str(found)


def test_the_flow_starts_from_the_spectrum_that_is_given() -> None:
    found = assess("power:0.5", "power:-0.3", falling(1.5))
    assert float(found.flow.erank_online[0]) == pytest.approx(found.erank_online, rel=1e-9)
    assert float(found.flow.erank_target[0]) == pytest.approx(found.erank_target, rel=1e-9)
    assert float(found.baseline.erank_online[0]) == pytest.approx(found.erank, rel=1e-9)
    assert (found.baseline.erank_online.diff() < 0).all()
    slope = (found.flow.erank_online[2] - found.flow.erank_online[0]) / found.flow.times[2] * found.unit
    assert found.rate == pytest.approx(float(slope), rel=0.1)
    assert float(found.flow.times[-1]) == pytest.approx(5 * found.unit)


def test_null_directions_are_counted_and_left_alone() -> None:
    x = falling(1).x.clone()
    x[60:] = 1e-9
    found = assess(None, "power:-1", Reference("deficient", x, 64, 96))
    assert found.null == 4
    assert found.erank_target == pytest.approx(60)
    assert found.ranges == {"Z": pytest.approx(math.sqrt(60)), "target": pytest.approx(1)}
    assert found.flow.encoder.shape[1] == 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gain", ["power:-0.5", "power:-1", "power:0.5"])
@pytest.mark.parametrize("power", [1, 3, 6])
def test_the_share_of_rounding_is_close_to_that_of_a_rounded_batch(
    power: float, gain: str, dtype: torch.dtype
) -> None:
    reference = falling(power)
    z = batch(reference)
    exact, rounded = spectral_filter(z, gain), spectral_filter(z.to(dtype).double(), gain)
    measured = float((rounded - exact).square().sum() / rounded.square().sum())
    (told,) = (each for each in assess(None, gain, reference).numerics if f"torch.{each.dtype}" == str(dtype))
    assert told.rounding_target / 5 < measured < 5 * told.rounding_target


def test_whitening_a_steep_spectrum_in_half_precision_is_warned_of() -> None:
    steep = falling(6)
    found = assess(None, "power:-1", steep).warnings()
    assert any("of the target output's energy is rounding if the batch arrives in bfloat16" in w for w in found)
    assert not any("arrives in float32" in w for w in found)
    assert assess(None, "power:-1", falling(1)).warnings() == []


def test_overflow_and_lost_digits_are_warned_of() -> None:
    big = Reference("big", 100 * falling(1).x, 64, 96)
    found = assess("power:2", None, big)
    p = spectral_filter(batch(big), "power:2")
    bound = {each.dtype: each.largest for each in found.numerics}["float16"]
    assert p.abs().max() / torch.finfo(torch.float16).max <= bound
    assert bound > 1
    assert any("times the largest float16" in w for w in found.warnings())
    wide = assess("power:3", None, falling(6))
    assert any("more than float32 resolves" in w for w in wide.warnings())


def test_a_high_pass_online_kills_directions_and_the_flow_is_told_up_to_there(tmp_path: Path) -> None:
    found = assess("power:-1", None, falling(1))
    assert found.rate <= 0
    assert 2 < len(found.flow.times) < len(found.baseline.times)
    figure = design_figure(found, tmp_path / "design.png")
    assert "directions die out" in [t.get_text() for t in figure.axes[2].texts]


def test_the_linear_flow_orders_filters_as_training_on_photographs_did() -> None:
    """The order of final online ranks in the flow is that of kNN and target ranks over three seeds."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for each in json.loads(RESULTS.read_text())["runs"]:
        if each["row"].startswith("simsiam ") and each["row"] != "simsiam online learned":
            measured.setdefault(each["row"], []).append((each["results"]["knn"], each["results"]["erank_target"]))
    predicted = []
    for row in measured:
        _, side, gain = row.split()
        online, target = (gain if side == branch else None for branch in ("online", "target"))
        found = assess(online, target, reference_spectrum())
        predicted.append(float(found.flow.erank_online[-1]))
    assert len(predicted) >= 6
    knn, ranks = np.mean([values[:3] for values in measured.values()], axis=1).T
    assert spearmanr(predicted, knn).statistic > 0.8
    assert spearmanr(predicted, ranks).statistic > 0.7


def test_a_python_function_is_assessed_as_a_formula_is() -> None:
    mine = assess(Gain.of("soft", lambda x: x / (x + 0.5)), None, falling(1))
    theirs = assess("s/(s+0.5)", "identity", falling(1))
    assert mine.erank_online == theirs.erank_online
    assert (mine.title, theirs.title) == ("online soft", "online s/(s+0.5)")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: assess(None, "identity", falling(1)), "a design needs a filter"),
        (lambda: assess("log1", None, falling(1)), "did you mean 'log1p'"),
        (lambda: assess("log", None, Reference("weak", falling(1).x / 100, 64, 96)), "'log' is 0 at every s"),
        (lambda: assess("power:300", None, falling(1)), r"'power:300' overflows float32 at s = 3\.\d+: it gives"),
        (
            lambda: assess(Gain("dip", lambda x: (x - 1).abs(), True, False), None, falling(1)),
            "'dip' is not monotone: it turns at s =",
        ),
        (
            lambda: assess(Gain("ln", torch.log, True, False), None, falling(1)),
            r"'ln' is negative at s = .*: it gives -.*; a gain is at least 0: clip it, max\(ln, 0\)",
        ),
    ],
)
def test_a_gain_that_is_not_valid_on_the_spectrum_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()


def test_a_spectrum_is_given_as_numbers_or_in_a_file(tmp_path: Path) -> None:
    expected = torch.tensor([4.0, 3.0, 1.5, 0.0], dtype=torch.float64)
    file = tmp_path / "spectrum.txt"
    for text in ("3 4\n1.5\n0\n", "3,4,1.5,0", "[3.0, 4, 15e-1, 0]"):
        file.write_text(text)
        found = reference_spectrum(str(file))
        assert torch.equal(found.x, expected)
        assert (found.name, found.rows, found.columns) == ("spectrum.txt", 4, 4)
    assert torch.equal(reference_spectrum("3,4,1.5,0").x, expected)
    default = reference_spectrum()
    assert float(default.x.square().sum()) == pytest.approx(256)  # batch-normed columns
    assert float(default.x[0] / default.x[-1]) == pytest.approx(16)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("runs/nothing", "'runs/nothing': expected a run folder, a file of numbers, or numbers such as 4,3,2,1"),
        ("", "expected a run folder"),
        ("4;3", "expected a run folder"),
        ("3", "2 to 8,192 finite numbers"),
        ("3,-1", r"at or above 0, not all 0 .*; got \[3.0, -1.0\]"),
        ("0,0", "not all 0"),
        ("nan,1", "finite"),
    ],
)
def test_an_invalid_spectrum_is_refused(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        reference_spectrum(source)


def points(figure: Figure, panel: int, label: str) -> list[tuple[float, float]]:
    (line,) = (each for each in figure.axes[panel].lines if each.get_label() == label)
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


@pytest.fixture(scope="module")
def found() -> Assessment:
    return assess("power:1", "power:-0.5", falling(1))


def test_the_picture_shows_gains_spectra_and_flow(found: Assessment, tmp_path: Path) -> None:
    figure = design_figure(found, tmp_path / "new" / "design.png")
    x = found.reference.x.tolist()
    np.testing.assert_allclose(points(figure, 0, "online"), np.column_stack([x, x]))
    assert [y for _, y in points(figure, 0, "target")] == pytest.approx([v**-0.5 for v in x])
    shares = [y for _, y in points(figure, 1, f"online: erank {found.erank_online:.1f}")]
    assert shares == pytest.approx([v**4 / sum(w**4 for w in x) for v in x])
    assert points(figure, 2, "online")[-1] == pytest.approx((5, float(found.flow.erank_online[-1])))
    assert points(figure, 2, "no filter")[0] == pytest.approx((0, found.erank))
    labels = [t.get_text() for t in figure.axes[2].texts]
    assert f"online {float(found.flow.erank_online[-1]):.1f}" in labels
    assert "directions die out" not in labels
    with Image.open(tmp_path / "new" / "design.png") as image:
        assert image.size == (1000, 410)


def test_labels_of_the_flow_lie_inside_the_picture_and_apart(tmp_path: Path) -> None:
    for gain in ("power:0.01", "power:2"):
        figure = design_figure(assess(gain, None, reference_spectrum()), tmp_path / "design.png")
        boxes = [t.get_window_extent() for t in figure.axes[2].texts if "die" not in t.get_text()]
        assert len(boxes) == 3
        assert all(box.x0 >= 0 and box.x1 <= 1000 for box in boxes)
        assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_design_prints_the_pair_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d.png"
    assert main(["design", "--online", "s/(s+0.1)", "--target", "power:-1", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    expected = assess("s/(s+0.1)", "power:-1", reference_spectrum())
    assert "online s/(s+0.1) (low-pass), target power:-1 (high-pass)" in said
    assert "low-pass: online against target, score +1.00" in said
    assert f"rank difference {expected.rank_difference:+.1f}" in said
    assert f"{expected.rate:+.1f} per unit of time" in said
    assert "target: the rank rises, 256.0 >= 74.6" in said
    assert "bfloat16:" in said
    assert "no warnings: dimensions grow" in said
    with Image.open(out) as image:
        assert image.format == "PNG"
    assert main(["design", "--online", "power:-0.5", "--spectrum", "3,2,1", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: the rank difference is -" in said
    assert "no warnings" not in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "a design needs a filter"),
        (["--online", "log(s)"], "negative at s = 1e-05: it gives -11.51"),
        (["--online", "s*exp(-s)"], "not monotone: it turns at s = 1;"),
        (["--online", "log", "--spectrum", "0.9,0.5"], "'log' is 0 at every s from 0.5 to 0.9"),
        (["--target", "power:-300", "--spectrum", "1,0.1"], "overflows float32 at s = 0.1"),
        (["--online", "power:0.5", "--spectrum", "missing"], "expected a run folder"),
        (["--online", "directpred"], "got directpred, which a run sets or learns"),
        (["--target", "learned"], "got learned, which a run sets or learns"),
        (["--online", "directset"], "expected a gain such as power:0.5"),
        (["--online", "directed"], "unknown gain 'directed'"),
    ],
)
def test_a_bad_design_gets_one_line_and_no_picture(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["design", *flags, "--out", str(tmp_path / "d.png")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "d.png").exists()


def test_train_refuses_an_invalid_gain_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--online", "1-s", "--out", str(tmp_path / "a")]) == 2
    assert "gain '1-s' is negative at s =" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    flags = ["--limit", "64", "--epochs", "1", "--batch-size", "32", "--protocol", "none", "--loggers", "none"]
    assert main(["train", "--online", "s/(s+0.1)", *flags, "--out", str(tmp_path / "a")]) == 0
