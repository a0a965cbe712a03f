from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rankgap.data.levels import PERCENTILES, TYPES, Levels, Sampled, check_depth, check_finite, rounded
from rankgap.errors import UserError

DEEP = [kind for kind in TYPES if kind != "uint8"]
examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def sampled(*images: Any) -> Sampled:
    found = Sampled()
    for image in images:
        found.add(image)
    return found


def twelve_bits(channels: int = 1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 4096, (60, 70, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_levels_are_numpy_s_percentiles_of_each_channel(channels: int) -> None:
    images = [twelve_bits(channels, seed) * np.arange(1, channels + 1, dtype=np.uint16) for seed in range(4)]
    levels, _ = sampled(*images).decide("a.png")
    low, high = np.percentile(np.stack(images), PERCENTILES, axis=(0, 1, 2))
    assert levels == Levels(low=tuple(low.tolist()), high=tuple(high.tolist()), depth="integer")


def test_a_large_image_gives_ten_thousand_pixels_from_all_over_it() -> None:
    rows = np.broadcast_to(np.arange(1000, dtype=np.uint16)[:, None, None], (1000, 300, 1))
    found = sampled(rows, np.ascontiguousarray(rows.swapaxes(0, 1)[:, :1000]))
    assert [len(part) for part in found.parts] == [10_000, 10_000]
    levels, _ = found.decide("a.png")
    assert abs(levels.low[0] - 1) < 3
    assert abs(levels.high[0] - 998) < 3


def test_hot_pixels_do_not_decide_the_range() -> None:
    image = twelve_bits()
    image[0, :3] = 65535
    levels, said = sampled(image).decide("a.png")
    assert levels.high[0] < 4096
    assert said.startswith("16-bit images with 16 bits in use: values from ")


@examples
@given(
    st.sampled_from(DEEP).flatmap(
        lambda kind: arrays.arrays(
            kind,
            (7, 1),
            elements=arrays.from_dtype(np.dtype(kind), allow_nan=False, allow_infinity=False)
            if not kind.startswith("float")
            else st.floats(-60_000, 60_000, width=16),
        )
    ),
    st.tuples(st.integers(-70_000, 70_000), st.integers(1, 70_000)),
)
def test_the_map_is_monotone_linear_and_clips(values: Any, ends: tuple[int, int]) -> None:
    low, high = float(ends[0]), float(ends[0] + ends[1])
    found = Levels(low=(low,), high=(high,), depth="integer").apply(values)
    assert found.dtype == np.float32
    exact = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255
    assert np.abs(found - exact).max() < 1e-4
    order = np.argsort(values[:, 0], kind="stable")
    assert (np.diff(found[order, 0]) >= 0).all()


@examples
@given(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
)
def test_the_ends_of_any_range_become_0_and_255(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if low == high:
        with pytest.raises(UserError, match="low < high"):
            Levels(low=(low,), high=(high,), depth="integer")
        return
    for kind in (np.float32, np.float64):  # neighbours in float32 too
        found = Levels(low=(low,), high=(high,), depth="integer").apply(np.array([[low], [high]], kind))
        assert found.tolist() == [[0], [255]]


def test_twelve_bits_keep_256_levels_and_16_bits_at_full_scale_are_as_bright_as_8_bits() -> None:
    every = np.arange(4096, dtype=np.uint16)[:, None]
    assert len(np.unique(rounded(Levels(low=(0.0,), high=(4095.0,), depth="integer").apply(every)))) == 256
    assert len(np.unique(rounded(Levels.full(1).apply(every)))) == 17
    eight = np.arange(256, dtype=np.uint16)[:, None]
    assert np.array_equal(rounded(Levels.full(1).apply(eight * 257)), eight)


def test_what_a_resize_overshoots_is_clipped_when_values_are_rounded() -> None:
    assert rounded(np.array([-20, 0.4, 254.6, 290], np.float32)).tolist() == [0, 0, 255, 255]


def test_the_range_of_32_bit_integers_is_kept_though_float32_would_not() -> None:
    values = np.array([[2**31 - 3], [2**31 - 2], [2**31 - 1]], np.int32)
    assert Levels(low=(2.0**31 - 3,), high=(2.0**31 - 1,), depth="integer").apply(values)[:, 0].tolist() == [
        0,
        127.5,
        255,
    ]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            np.full((4, 4, 1), 7, np.uint16),
            r"every value is 7 in a\.png and the others of the 2 images .*check how the files were written$",
        ),
        (
            np.stack([np.arange(16).reshape(4, 4), np.zeros((4, 4))], 2).astype(np.float32),
            r"every value of channel 2 is 0 in a\.png and .*leave that channel out of them$",
        ),
    ],
)
def test_a_constant_channel_has_no_range(image: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        sampled(image, image).decide("a.png")
    assert "\n" not in str(caught.value)


def test_one_constant_image_among_others_is_fine() -> None:
    levels, _ = sampled(np.full((60, 70, 1), 9, np.uint16), twelve_bits()).decide("a.png")
    assert levels.low[0] < levels.high[0]


def test_a_channel_that_is_nearly_all_background_takes_its_whole_range() -> None:
    image = np.zeros((100, 100, 1), np.float32)
    image[3, 4] = 2.5
    levels, said = sampled(image).decide("a.png")
    assert levels == Levels(low=(0.0,), high=(2.5,), depth="floating-point")
    assert "nearly all one value" in said


def test_the_note_states_type_range_percentiles_and_number_of_images() -> None:
    ramp = np.arange(4001, dtype=np.uint16).reshape(1, -1, 1)
    _, said = sampled(ramp, ramp).decide("a.png")
    assert said == (
        "16-bit images with 12 bits in use: values from 4 to 3,996 (0.1% to 99.9% of 2 images) become 0 to 255, "
        "channel by channel"
    )
    _, said = sampled((ramp.repeat(6, 2) / 4000).astype(np.float32)).decide("a.png")
    assert said.startswith(
        "32-bit floating-point images with values of 0 to 1: values from 0.001 to 0.999 in channel 1, from 0.001 "
        "to 0.999 in channel 2"
    )
    assert "and so on for 6 channels (0.1% to 99.9% of 1 image)" in said
    _, said = sampled(ramp.astype(np.int16) - 5).decide("a.png")
    assert said.startswith("16-bit images with values of -5 to 3,995: values from -1 to 3,991 ")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = np.zeros((4, 5, 2))
    values[1, 2, 0] = bad
    with pytest.raises(ValueError, match="1 of its 40 values are NaN, infinite or too large"):
        check_finite(values)
    check_finite(np.zeros((4, 5, 2)))
    check_finite(twelve_bits())


@pytest.mark.parametrize(
    ("levels", "takes"),
    [
        (None, {"uint8", "uint16"}),
        (Levels(low=(0.0,), high=(1.0,), depth="integer"), {"uint16", "int16", "uint32", "int32"}),
        (Levels(low=(0.0,), high=(1.0,), depth="floating-point"), {"float16", "float32", "float64"}),
    ],
)
def test_an_image_of_another_depth_than_the_set_s_is_refused(levels: Levels | None, takes: set[str]) -> None:
    for kind in TYPES:
        if kind in takes:
            check_depth(kind, levels)
            continue
        with pytest.raises(ValueError, match=f"it has {kind} pixels, where .* ones are expected; save all images"):
            check_depth(kind, levels)


@pytest.mark.parametrize(
    ("low", "high"), [((0.0,), (0.0, 1.0)), ((1.0,), (1.0,)), ((float("nan"),), (1.0,)), ((-1e308,), (1e308,))]
)
def test_levels_that_map_nothing_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="expected levels with low < high for each channel"):
        Levels(low=low, high=high, depth="integer")
