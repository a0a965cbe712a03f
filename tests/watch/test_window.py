from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.pair import PairSpectrum, pair_spectrum
from rankgap.spectra.sketch import COLUMNS, WIDEST
from rankgap.watch.window import Window
from tests.matrices import gaussian
from tests.processes import WORLD, needs_distributed, run_on_processes

WIDE = 8192
DIRECTIONS = ("eigenspace_alignment", "measured_filter", "transfer")


def of_rank(rank: int, rows: int = 96, width: int = WIDE, seed: int = 0) -> Tensor:
    """Float32 rows in so many random directions."""
    return (gaussian(rows, rank, seed=seed) @ gaussian(rank, width, seed=seed + 1)).float()


def filled(*readings: tuple[Tensor, Tensor], paired: bool = True) -> Window:
    window = Window()
    for online, target in readings:
        window.add(online, target, paired=paired)
    return window


def assert_same(found: PairSpectrum, wanted: PairSpectrum) -> None:
    for name in ("spectrum_online", "spectrum_target", *DIRECTIONS):
        assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-6, atol=1e-9)


def test_a_window_of_paired_rows_is_their_record() -> None:
    p, t = gaussian(700, 8), gaussian(700, 8, seed=1)  # a batch of more rows than are added at a time
    window = filled((p[:10], t[:10]), (p[10:], t[10:]))
    found = window.spectrum(7)
    assert_same(found, pair_spectrum(p, t))
    assert (window.rows, found.rows, found.step) == (700, 700, 7)
    assert found.sketch_online is found.sketch_target is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_any_dtype_are_added(dtype: torch.dtype) -> None:
    p, t = gaussian(9, 5).to(dtype), gaussian(9, 5, seed=1).to(dtype)
    assert_same(filled((p, t)).spectrum(0), pair_spectrum(p.double(), t.double()))


@pytest.mark.parametrize(("widths", "paired"), [((8, 6), True), ((8, 6), False), ((8, 8), False)])
def test_rows_that_do_not_pair_have_ranks_alone(widths: tuple[int, int], paired: bool) -> None:
    p, t = gaussian(30, widths[0]), gaussian(30, widths[1], seed=1)
    found = filled((p, t), (p, t), paired=paired).spectrum(7)
    assert (found.rows, found.step) == (60, 7)
    assert_close(found.erank_online, effective_rank(p))
    assert_close(found.erank_target, effective_rank(t))
    assert all(len(getattr(found, name)) == 0 for name in DIRECTIONS)
    assert "left out: it needs paired rows of one width" in repr(found)


def test_wide_rows_are_sketched_and_the_record_says_so() -> None:
    p, t = of_rank(3), of_rank(40, seed=5)
    found = filled((p[:50], t[:50]), (p[50:], t[50:])).spectrum(7)
    assert found.sketch_online == found.sketch_target == (COLUMNS, WIDE)
    assert_close(found.erank_online, effective_rank(p), rtol=0.03, atol=0)
    assert_close(found.erank_target, effective_rank(t), rtol=0.03, atol=0)
    assert "(estimated from a sketch of 8,192 columns in 2,048)" in repr(found)
    assert_close(found.spectrum_target.square().sum(), t.double().square().sum(), rtol=1e-9, atol=0)


def test_both_branches_go_through_one_sketch_so_that_their_products_hold() -> None:
    target = of_rank(40)
    found = filled((-0.5 * target, target)).spectrum(0)
    ones = torch.ones(40, dtype=torch.float64)
    assert_close(found.measured_filter, ones / 2, rtol=1e-5, atol=0)
    assert_close(found.transfer, -ones / 2, rtol=1e-5, atol=0)
    assert_close(found.eigenspace_alignment, ones, rtol=1e-5, atol=0)
    assert_close(found.erank_online, found.erank_target, rtol=1e-6, atol=0)


def test_only_the_wide_branch_is_an_estimate() -> None:
    p, t = gaussian(20, 100), of_rank(5, rows=20, width=WIDEST + 1)
    found = filled((p, t), paired=False).spectrum(0)
    assert (found.sketch_online, found.sketch_target) == (None, (COLUMNS, WIDEST + 1))
    assert_close(found.spectrum_target.square().sum(), t.double().square().sum(), rtol=1e-9, atol=0)
    assert_close(found.erank_online, effective_rank(p))
    assert_close(found.erank_target, effective_rank(t), rtol=0.03, atol=0)


def test_a_window_begins_again_when_widths_or_pairing_change() -> None:
    p, t = gaussian(10, 4), gaussian(10, 4, seed=1)
    window = filled((p, t))
    window.add(gaussian(6, 5), gaussian(6, 5, seed=1), paired=True)
    assert window.rows == window.spectrum(0).rows == 6
    window.add(gaussian(3, 5), gaussian(3, 5, seed=1), paired=False)
    assert window.rows == 3
    window.add(gaussian(2, 5), gaussian(2, 5, seed=1), paired=False)
    assert window.rows == 5


@pytest.mark.parametrize("paired", [True, False])
def test_a_cleared_window_holds_the_rows_since(paired: bool) -> None:
    p, t = gaussian(10, 4), gaussian(10, 4, seed=1)
    window = filled((p, t), paired=paired)
    window.clear()
    assert window.rows == 0
    with pytest.raises(UserError, match="no batch has been added yet"):
        window.spectrum(0)
    window.add(p[:6], t[:6], paired=paired)
    assert_same(window.spectrum(0), filled((p[:6], t[:6]), paired=paired).spectrum(0))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("dead", ["online", "target"])
def test_a_branch_that_is_all_zero_is_named(dead: str, paired: bool) -> None:
    rows = {"online": torch.ones(4, 3), "target": torch.ones(4, 3), dead: torch.zeros(4, 3)}
    with pytest.raises(UserError, match=f"the {dead} outputs are all zero"):
        filled((rows["online"], rows["target"]), paired=paired).spectrum(0)


def test_an_empty_window_has_no_record() -> None:
    window = Window()
    window.clear()
    assert window.rows == 0
    with pytest.raises(UserError, match="no rows have been added yet"):
        window.spectrum(0)


@pytest.mark.parametrize("width", [WIDE, 65_536])
def test_the_sums_of_a_wide_window_have_one_size_whatever_the_width(width: int) -> None:
    """Three (2048, 2048) sums are 101 MB; the sketch itself has sixteen bytes a column."""
    window = filled((torch.ones(1, width), torch.ones(1, width)))
    tensors: list[Tensor] = []
    nested: list[Any] = [window._sums]
    while nested:
        for field in dataclasses.fields(part := nested.pop()):
            value = getattr(part, field.name)
            (tensors if isinstance(value, Tensor) else nested).append(value)
    assert sum(x.numel() * x.element_size() for x in tensors) < 3 * 8 * 2048**2 + 16 * (width + 2048) + 4096


def on_process(process: int) -> None:
    """Sums over both processes, of each one's share of the rows, and of all rows on both, which count twice."""
    for width, paired in ((9, True), (9, False), (WIDE, False)):
        readings = [(of_rank(6, 24, width, seed=10 * k), of_rank(5, 24, width, seed=10 * k + 5)) for k in range(2)]
        own = filled(*((p[process::WORLD], t[process::WORLD]) for p, t in readings), paired=paired)
        found, twice = own.spectrum(3), filled(*readings, paired=paired).spectrum(3)
        assert (own.rows, found.rows, twice.rows) == (24, 48, 96)
        assert found.sketch_online == (None if width < WIDE else (COLUMNS, WIDE))
        for name in ("erank_online", "erank_target", *DIRECTIONS):
            assert_close(getattr(found, name), getattr(twice, name), rtol=1e-5, atol=1e-6)
        kept = min(width, 12)
        assert_close(math.sqrt(2) * found.spectrum_online[:kept], twice.spectrum_online[:kept], rtol=1e-6, atol=0)
        if width < WIDE:
            assert_close(own.spectrum(3).spectrum_online, found.spectrum_online)  # its own sums stay as they are


def unlike(process: int) -> None:
    """One process has no finite rows; then they have rows of different widths."""
    readings = [(gaussian(24, 9), gaussian(24, 9, seed=1))]
    window = filled(*readings[process:])
    found = window.spectrum(3)
    assert (window.rows, found.rows) == (24 * (1 - process), 24)
    assert_same(found, pair_spectrum(*readings[0]))
    window.add(gaussian(24, 9 + process), gaussian(24, 9 + process), paired=True)
    with pytest.raises(UserError, match="the processes have read outputs of different widths"):
        window.spectrum(3)


@needs_distributed
def test_processes_agree_before_they_add_up(tmp_path: Path) -> None:
    run_on_processes(unlike, tmp_path)


@needs_distributed
def test_two_processes_add_up_to_one_that_sees_all_rows(tmp_path: Path) -> None:
    run_on_processes(on_process, tmp_path)
