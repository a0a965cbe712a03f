from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.gram import RESOLUTION
from rankgap.spectra.pair import PairGrams, PairSpectrum, pair_spectrum, spectrum_of_grams
from rankgap.spectra.sketch import SketchSize
from rankgap.spectra.sums import PairSums
from tests.matrices import gaussian

COLUMNS = ["spectrum_online", "spectrum_target", "eigenspace_alignment", "measured_filter", "transfer"]
SKETCHES = ["sketch_online", "sketch_target"]
properties = settings(max_examples=60, derandomize=True, deadline=None)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def pair(shape: tuple[int, int] = (6, 9), seed: int = 0) -> tuple[Tensor, Tensor]:
    """A target, and what a map and a little noise make of it."""
    target, weight = gaussian(*shape, seed=seed), gaussian(shape[1], shape[1], seed=seed + 1)
    return target @ weight + 0.1 * gaussian(*shape, seed=seed + 2), target


def record() -> PairSpectrum:
    return dataclasses.replace(pair_spectrum(*pair()), step=70)


def by_definition(online: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The three columns of directions, by singular value decomposition."""
    v = torch.linalg.svd(target, full_matrices=False).Vh.mT
    seen, sent = online @ v, target @ v
    image = online.mT @ seen
    return {
        "eigenspace_alignment": (image * v).sum(0).abs() / image.norm(dim=0),
        "measured_filter": seen.norm(dim=0) / sent.norm(dim=0),
        "transfer": (seen * sent).sum(0) / sent.square().sum(0),
    }


@properties
@given(shapes, st.integers(0, 10_000))
def test_products_between_rows_and_between_columns_give_one_record(shape: tuple[int, int], seed: int) -> None:
    p, t = pair(shape, seed)
    by_rows = PairGrams(p @ p.mT, t @ t.mT, p @ t.mT, len(t), between_rows=True)
    by_columns = PairGrams(p.mT @ p, t.mT @ t, p.mT @ t, len(t), between_rows=False)
    expected = by_definition(p, t)
    found = [spectrum_of_grams(grams, RESOLUTION) for grams in (by_rows, by_columns)]
    sums = PairSums.zeros(shape[1])
    for start in range(0, len(t), 5):
        sums.add(p[start : start + 5], t[start : start + 5])
    for each in (*found, sums.spectrum(), pair_spectrum(p, t)):
        for name, values in expected.items():
            assert_close(getattr(each, name), values, rtol=1e-6, atol=1e-9)
        for name in COLUMNS[:2]:
            r = min(shape)
            assert_close(getattr(each, name)[:r], getattr(found[0], name)[:r], rtol=1e-6, atol=1e-9)
        assert (each.eigenspace_alignment <= 1).all()


def test_a_record_knows_its_ranks() -> None:
    p, t = pair()
    found = pair_spectrum(p, t)
    assert_close(found.erank_online, effective_rank(p))
    assert_close(found.erank_target, effective_rank(t))
    assert_close(found.rank_difference, effective_rank(t) - effective_rank(p))
    dead = pair_spectrum(torch.zeros(4, 3), torch.eye(4, 3))
    assert dead.erank_online.isnan()
    assert_close(dead.eigenspace_alignment, torch.zeros(3, dtype=torch.float64))
    assert_close(dead.measured_filter, torch.zeros(3, dtype=torch.float64))


@properties
@given(
    shapes,
    st.integers(0, 10_000),
    st.sampled_from(["alive", "online dead", "target dead"]),
    st.none() | st.just(3),
)
def test_a_record_comes_back_from_disk_to_five_digits(
    shape: tuple[int, int], seed: int, state: str, step: int | None
) -> None:
    p, t = pair(shape, seed)
    p, t = (0 * p if state == "online dead" else p), (0 * t if state == "target dead" else t)
    kept = dataclasses.replace(pair_spectrum(p, t), step=step)
    found = PairSpectrum.from_plain(json.loads(json.dumps(kept.plain())))
    assert (found.rows, found.step) == (kept.rows, kept.step) == (shape[0], step)
    for name in COLUMNS:
        assert_close(getattr(found, name), getattr(kept, name), rtol=5.1e-5, atol=0)
    assert found.plain() == kept.plain()


def test_plain_values_are_kept_by_name() -> None:
    values = record().plain()
    assert list(values) == [*COLUMNS, "rows", "step", *SKETCHES]
    assert (values["rows"], values["step"]) == (6, 70)
    assert values["transfer"][0] == float(f"{record().transfer[0]:.5g}")


@pytest.mark.parametrize("name", [*COLUMNS, "rows", "step"])
def test_a_missing_name_is_named(name: str) -> None:
    values = record().plain()
    del values[name]
    with pytest.raises(UserError, match=f"have no '{name}'"):
        PairSpectrum.from_plain(values)


def test_a_record_of_an_earlier_version_has_no_sketch() -> None:
    kept = record()
    values = {name: value for name, value in kept.plain().items() if name not in SKETCHES}
    found = PairSpectrum.from_plain(values)
    assert found.sketch_online is found.sketch_target is None
    assert found.plain() == kept.plain()


def ranks_only() -> PairSpectrum:
    none = torch.zeros(0, dtype=torch.float64)
    return PairSpectrum(
        spectrum_online=torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64),
        spectrum_target=torch.tensor([3.0, 3.0], dtype=torch.float64),
        eigenspace_alignment=none,
        measured_filter=none,
        transfer=none,
        rows=4,
        sketch_target=SketchSize(2048, 65_536),
    )


def test_a_record_of_rows_that_do_not_pair_says_what_was_left_out_and_what_is_estimated() -> None:
    kept = ranks_only()
    found = PairSpectrum.from_plain(json.loads(json.dumps(kept.plain())))
    assert found.plain() == kept.plain()
    assert (found.sketch_online, found.sketch_target) == (None, (2048, 65_536))
    assert_close(found.erank_target, kept.erank_target)
    assert repr(kept).splitlines()[1:] == [
        "effective rank, online  1.65 of 3",
        "effective rank, target  2.00   (estimated from a sketch of 65,536 columns in 2,048)",
        "rank difference         +0.35   (above 0: dimensions grow)",
        "eigenspace alignment    left out: it needs paired rows of one width",
        "low-pass score          left out: it needs paired rows of one width",
    ]
    dead = pair_spectrum(torch.eye(4, 3), torch.zeros(4, 3))
    assert repr(dead).splitlines()[-1] == "low-pass score          left out: the target is zero"
    with pytest.raises(UserError, match="transfer of a pair's spectra must have 6 numbers, got 0"):
        PairSpectrum.from_plain(record().plain() | {"transfer": []})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2048, "must be two numbers of columns or null, got 2048"),
        ([2048], "must be two numbers of columns"),
        ([2048.0, 4096], "must be a whole number from 2 "),
        ([1, 4096], "must be a whole number from 2 "),  # fewer columns than its spectrum has numbers
        ([4096, 2048], "must be a whole number from 4096 "),
    ],
)
def test_an_impossible_sketch_is_named(value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^sketch_target of .* {says}"):
        PairSpectrum.from_plain(ranks_only().plain() | {"sketch_target": value})


def test_an_unknown_name_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'alignment': did you mean 'eigenspace_alignment'"):
        PairSpectrum.from_plain(record().plain() | {"alignment": [1.0]})
    with pytest.raises(UserError, match="fields by name, got list"):
        PairSpectrum.from_plain([1.0])  # type: ignore[arg-type]


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, "1.0", None, True, [1.0]]).map(lambda value: [value]),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=2),
)


@properties
@given(st.sampled_from(COLUMNS), odd)
def test_a_column_that_is_not_a_list_of_finite_numbers_is_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} of .* must be a list of finite numbers"):
        PairSpectrum.from_plain(record().plain() | {name: value})


@properties
@given(
    st.sampled_from(["rows", "step"]),
    odd.filter(lambda value: value is not None) | st.integers(max_value=-1),
)
def test_a_count_that_is_not_a_whole_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} of .* must be a whole number"):
        PairSpectrum.from_plain(record().plain() | {name: value})


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("spectrum_online", lambda v: v[:-1], "must have 6 numbers, got 5"),
        ("spectrum_online", lambda v: v[::-1], "must be in descending order"),
        ("spectrum_target", lambda v: [*v[:-1], -0.1], "must have 5 numbers|cannot be negative"),
        ("spectrum_target", lambda v: [], "must have 1 to 6 numbers, got 0|must have 0 numbers"),
        ("eigenspace_alignment", lambda v: [1.5, *v[1:]], r"cannot be above 1, got 1\.5"),
        ("eigenspace_alignment", lambda v: v[1:], "must have 6 numbers, got 5"),
        ("measured_filter", lambda v: [-0.5, *v[1:]], r"cannot be negative, got -0\.5"),
        ("transfer", lambda v: [*v, 1.0], "must have 6 numbers, got 7"),
        ("rows", lambda v: 5, "spectrum_online of 5 rows must have 1 to 5 numbers, got 6"),
    ],
)
def test_values_impossible_for_a_pair_of_branches_are_named(name: str, change: Any, says: str) -> None:
    values = record().plain()
    with pytest.raises(UserError, match=says):
        PairSpectrum.from_plain(values | {name: change(values[name])})
