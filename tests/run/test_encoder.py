from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import rankgap as rg
from rankgap.data import load_data
from rankgap.errors import UserError
from rankgap.evaluate import extract_features
from rankgap.run.config import TrainConfig
from rankgap.run.encoder import TrainedEncoder
from rankgap.run.trainer import train

RNG = np.random.default_rng(0)


def photo(height: int, width: int) -> Image.Image:
    coarse = Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 small photos of different sizes."""
    home = tmp_path_factory.mktemp("encoder")
    (home / "photos").mkdir()
    for k in range(24):
        photo(60 + k, 85 - k).save(home / "photos" / f"{k:02}.png")
    short: dict[str, Any] = {"epochs": 1, "batch_size": 8, "size": 32, "protocol": (), "loggers": ()}
    train(TrainConfig(data=f"folder:{home / 'photos'}", out=str(home / "run"), **short))
    return home / "run"


@pytest.fixture
def encoder(run: Path) -> TrainedEncoder:
    return rg.load_encoder(run)


def test_files_have_the_features_of_the_run_s_evaluation(encoder: TrainedEncoder, run: Path) -> None:
    images, _ = load_data(f"folder:{run.parent / 'photos'}", size=32)
    expected = extract_features(encoder.encoder, images, size=32, mean=encoder.mean, std=encoder.std).features
    paths = sorted((run.parent / "photos").iterdir())
    assert_close(encoder(paths), expected, rtol=1e-4, atol=1e-5)
    assert_close(encoder([str(path) for path in paths]), expected, rtol=1e-4, atol=1e-5)
    opened = [Image.open(path) for path in paths]
    assert_close(encoder(opened), expected, rtol=1e-4, atol=1e-5)
    for image in opened:
        image.close()


def test_pixels_have_one_vector_however_they_are_passed(encoder: TrainedEncoder) -> None:
    stack = np.stack([np.asarray(photo(50, 70)) for _ in range(3)])
    tensor = torch.from_numpy(stack).permute(0, 3, 1, 2)
    expected = encoder(tensor)
    assert expected.shape == (3, 128)
    ways: list[Any] = [
        stack,
        np.moveaxis(stack, 3, 1),
        list(stack),
        list(tensor),
        tuple(stack),
        tensor.contiguous(),
    ]
    for way in ways:
        assert_close(encoder(way), expected, rtol=1e-4, atol=1e-5)
    for one in (stack[1], tensor[1], np.moveaxis(stack[1], 2, 0)):
        assert_close(encoder(one), expected[1], rtol=1e-4, atol=1e-5)
    close = torch.cosine_similarity(encoder(Image.fromarray(stack[1])), expected[1], dim=0)
    assert close > 0.99  # a file is squashed on the way, as in the run


def test_grey_transparent_and_16_bit_images_are_converted(encoder: TrainedEncoder) -> None:
    image = photo(40, 40)
    grey = np.asarray(image.convert("L"))
    assert_close(encoder(grey), encoder(np.stack([grey] * 3, axis=2)), rtol=1e-4, atol=1e-5)
    assert_close(encoder(image.convert("L")), encoder(image.convert("L").convert("RGB")), rtol=1e-4, atol=1e-5)
    assert_close(encoder(image.convert("RGBA")), encoder(image), rtol=1e-4, atol=1e-5)
    assert_close(encoder(grey.astype(np.uint16) * 257), encoder(grey), rtol=1e-4, atol=1e-5)


def test_it_builds_no_graph_and_can_be_trained_further(encoder: TrainedEncoder) -> None:
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(images).requires_grad
    encoder.requires_grad_()
    encoder(images).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_tokens_are_the_places_of_the_feature_map(encoder: TrainedEncoder, run: Path) -> None:
    places = rg.load_encoder(run, tokens=True)
    images = [photo(40, 50) for _ in range(3)]
    assert places(images).shape == (3, 16, 128)  # 32 px over three halvings
    assert_close(places(images).mean(1), encoder(images))  # this network's features are their mean
    assert_close(places(images[0]), places(images)[0], rtol=1e-4, atol=1e-5)
    assert not places(images).requires_grad


def test_many_images_pass_in_batches(encoder: TrainedEncoder) -> None:
    seen: list[int] = []
    encoder.encoder.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    image = photo(32, 32)
    assert encoder([image] * 150).shape == (150, 128)
    assert encoder(np.stack([np.asarray(image)] * 130)).shape == (130, 128)
    assert seen == [64, 64, 22, 64, 64, 2]
    seen.clear()
    encoder.train()(torch.zeros(130, 3, 32, 32, dtype=torch.uint8))
    assert seen == [130]  # batch norm sees the whole batch


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "at least one image, got none"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "at least one image, got none"),
        (torch.zeros(2, 3, 8, 8), "expected images of uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], "image 1: expected images of uint8"),
        (["nowhere.png"], "nowhere.png cannot be read: No such file"),
        ("nowhere.png", "nowhere.png cannot be read: No such file"),
        ([np.zeros((8, 8, 3), np.uint8), None], "image 1 cannot be read: expected a PIL image, .* got NoneType"),
        (np.zeros((8, 8, 5), np.uint8), "5 channels cannot be converted to 3"),
    ],
)
def test_what_cannot_be_encoded_is_said(encoder: TrainedEncoder, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        encoder(given)
