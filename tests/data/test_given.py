from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from rankgap.data.cutting import centre
from rankgap.data.decoding import decode
from rankgap.data.given import Items, decode_item, given_source, pixels
from rankgap.data.loading import load_data
from rankgap.errors import UserError
from tests.data.pictures import squashed

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((20, 24), None, (1, 20, 24)),
        ((20, 24, 3), None, (3, 20, 24)),
        ((3, 20, 24), None, (3, 20, 24)),
        ((20, 24, 13), None, (13, 20, 24)),
        ((13, 20, 24), 13, (13, 20, 24)),
        ((5, 20, 24, 3), None, (5, 3, 20, 24)),
        ((5, 3, 20, 24), None, (5, 3, 20, 24)),
        ((5, 20, 24, 1), 3, (5, 3, 20, 24)),
        ((5, 20, 24, 3), 1, (5, 1, 20, 24)),
    ],
)
def test_channels_are_the_axis_that_is_too_short_for_a_side(
    shape: tuple[int, ...], channels: int | None, expected: tuple[int, ...]
) -> None:
    array = noise(*shape)
    found = pixels(array, channels)
    assert tuple(found.shape) == expected
    assert torch.equal(found, pixels(torch.from_numpy(array), channels)) or shape == (20, 24, 13)


def test_where_the_shape_does_not_say_a_tensor_has_its_channels_first_and_an_array_is_refused() -> None:
    assert pixels(torch.zeros(13, 20, 24, dtype=torch.uint8)).shape == (13, 20, 24)
    assert pixels(torch.zeros(3, 20, 3, dtype=torch.uint8)).shape == (3, 20, 3)
    with pytest.raises(UserError, match="seems to have its channels first"):
        pixels(noise(13, 20, 24))
    with pytest.raises(UserError, match=r"which axis of \(3, 20, 3\) holds the channels"):
        pixels(noise(3, 20, 3))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((8, 8, 3)), r"expected images of uint8 \(0 to 255\), got float64; .*astype\(numpy.uint8\)"),
        (
            torch.zeros(3, 8, 8),
            r"got float32; if the values lie in \[0, 1\], pass \(255 \* images\).round\(\).byte",
        ),
        (np.zeros(8, np.uint8), r"or N of them \(N, H, W, C\), got \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        (np.zeros((8, 8, 13), np.uint8), "13 channels cannot be converted to 3"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pixels(given, 3)


def test_sixteen_bits_keep_their_brightness() -> None:
    assert pixels(np.full((4, 6), 65535, np.uint16)).unique().tolist() == [255]


def as_file(image: Image.Image, kind: str) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind)
    file.seek(0)
    return file


PALETTE = Image.fromarray(noise(20, 24, 3)).quantize(16)
PALETTE.info["transparency"] = 3


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(noise(20, 24, 3)), "PNG"),
        (Image.fromarray(noise(20, 24)), "PNG"),
        (Image.fromarray(noise(20, 24, 4)), "PNG"),
        (PALETTE, "PNG"),
        (Image.fromarray(noise(20, 24, 4), "CMYK"), "TIFF"),
        (Image.fromarray(RNG.integers(0, 65536, (20, 24), dtype=np.uint16)), "PNG"),
    ],
    ids=["RGB", "L", "RGBA", "P", "CMYK", "I;16"],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_a_pil_image_is_what_its_file_is(image: Image.Image, kind: str) -> None:
    found, sizes = decode_item(Items([image]), 0, size=21, channels=3)
    expected, _ = squashed(as_file(image, kind), 24, 3)
    assert torch.equal(found[0].permute(1, 2, 0), torch.from_numpy(expected.copy()))
    assert sizes is not None
    assert sizes.tolist() == [[20, 24]]
    for share in (1.0, 7 / 8):  # larger than its view: the central square, from the original
        found, sizes = decode_item(Items([image]), 0, size=16, channels=3, centre=share)
        (square,), _ = decode(as_file(image, kind), centre(16, share), 3)
        assert torch.equal(found[0].permute(1, 2, 0), torch.from_numpy(square.copy()))
        assert sizes is None


def test_a_pil_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(io.BytesIO(jpeg(exif.tobytes()))) as image:
        _, sizes = decode_item(Items([image]), 0, size=28, channels=3)
    assert sizes is not None
    assert sizes.tolist() == [[30, 20]]
    with Image.open(io.BytesIO(jpeg(b""))) as image:
        image.info["exif"] = b"Exif\0\0II*\0\xff\xff\xff\xff"  # broken, and no veto
        _, sizes = decode_item(Items([image]), 0, size=28, channels=3)
    assert sizes is not None
    assert sizes.tolist() == [[20, 30]]
    with (
        Image.open(io.BytesIO(jpeg(b"")[:-200])) as image,
        pytest.raises(UserError, match="image 0 cannot be read"),
    ):
        decode_item(Items([image]), 0, size=28, channels=3)


def jpeg(exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(20, 30, 3)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    items = Items([Image.fromarray(noise(8, 8)), tmp_path / "gone.png", "text", 7, Image.new("F", (8, 8))])
    for index, says in enumerate(
        [
            "",
            "gone.png cannot be read: No such file",
            "text cannot be read",
            "image 3 .* got int",
            "float32 pixels,",
        ]
    ):
        if says:
            with pytest.raises(UserError, match=says):
                decode_item(items, index, size=8, channels=1)
    assert len(pickle.loads(pickle.dumps(items))) == 5


@pytest.mark.parametrize("size", [16, 28])
def test_a_list_of_different_images_becomes_a_set_like_a_folder_of_them(tmp_path: Path, size: int) -> None:
    images = [Image.fromarray(noise(20 + k, 30, 3)) for k in range(6)]
    for k, image in enumerate(images):
        image.save(tmp_path / f"{k}.png")
    there, _ = load_data(f"folder:{tmp_path}", size=size)
    arrays = [np.asarray(image) for image in images]
    pairs = [(torch.from_numpy(array.copy()).permute(2, 0, 1), 1) for array in arrays]
    for given in (images, arrays, pairs, [tmp_path / f"{k}.png" for k in range(6)]):
        here, test = load_data(given_source(given), size=size)
        assert test is None
        assert torch.equal(here.batch(range(6)).images, there.batch(range(6)).images)
        assert here.mean == there.mean
        assert here.in_memory is there.in_memory is (size == 28)
        if here.in_memory:
            assert here.sizes is not None
            assert there.sizes is not None
            assert torch.equal(here.sizes, there.sizes)


def test_stacks_and_their_labels_become_both_splits() -> None:
    stack = noise(8, 20, 20, 3)
    train, test = load_data(given_source(stack, list("abababab"), stack[:3], np.array(["b", "a", "b"])))
    assert test is not None
    assert_close(train.batch(range(8)).images, torch.from_numpy(stack).permute(0, 3, 1, 2))
    assert train.classes == ["a", "b"]
    assert test.batch([0, 1]).labels is not None
    assert train.batch([0, 1]).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    assert test.batch([0, 1]).labels.tolist() == [1, 0]  # type: ignore[union-attr]
    grey, _ = load_data(given_source(noise(8, 20, 20)))
    assert (grey.channels, grey.size) == (1, 20)
    wide, _ = load_data(given_source(noise(8, 20, 30, 3)), size=27)
    assert wide.size == 30
    assert wide.batch([0]).sizes.tolist() == [[20, 30]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (noise(8, 20, 20), [1, 2], "8 labels, one for each train image, got 2"),
        (noise(20, 20), None, r"expected a stack of images \(N, H, W, C\), got \(20, 20\)"),
        (7, None, "or a sequence of images, got int"),
        (b"photos", None, "got bytes"),
    ],
)
def test_what_is_no_data_set_is_refused(images: Any, labels: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        given_source(images, labels)


def test_a_stack_and_a_list_are_read_by_the_same_rules() -> None:
    stack = noise(6, 12, 12, 3)
    listed = [Image.fromarray(each) for each in stack]
    whole, _ = load_data(given_source(stack))
    assert isinstance(whole.images, torch.Tensor)
    for images, test in ((stack, listed), (listed, stack), (stack, list(stack))):
        for found in load_data(given_source(images, test=test)):
            assert found is not None
            assert isinstance(found.images, torch.Tensor)
            assert torch.equal(found.images, whole.images)


def test_test_images_of_another_depth_are_refused() -> None:
    deep = noise(6, 12, 12, 3).astype(np.uint16) * 16
    with pytest.raises(UserError, match="it has uint8 pixels, where 16-bit or 32-bit integer ones are expected"):
        load_data(given_source(deep, test=noise(6, 12, 12, 3)))
