from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rankgap.data import ImageSet
from rankgap.errors import NonFiniteError, UserError
from rankgap.evaluate import (
    check_sets,
    evaluate,
    evaluation,
    extract_features,
    knn,
    linear_probe,
)
from rankgap.spectra.effective_rank import effective_rank, rankme


def image_set(images: Tensor, labels: Tensor | None, *, classes: Sequence[str] | None, name: str) -> ImageSet:
    found = ImageSet(name, images, labels, (0.3,) * images.shape[1], (0.37,) * images.shape[1])
    found.classes = None if classes is None else list(classes)
    return found


class Pixels(nn.Module):
    """An encoder whose features are known: the pixels, through a normalisation that depends on the mode."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(gain))
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.frozen(self.norm(images) * self.weight)
        return features.flatten(1)


def digit_set(
    rows: slice,
    *,
    labelled: bool = True,
    classes: Sequence[str] | None = tuple("0123456789"),
    name: str = "digits",
) -> ImageSet:
    data = load_digits()
    images = torch.tensor(data.images[rows] * 15.9).byte()[:, None]
    labels = torch.tensor(data.target[rows]) if labelled else None
    return image_set(images, labels, classes=classes if labelled else None, name=name)


TRAIN, TEST = slice(1200), slice(1200, None)


@pytest.fixture(name="encoder")
def _encoder() -> Pixels:
    return Pixels()


def test_features_are_taken_in_evaluation_mode_and_each_modules_mode_is_put_back(encoder: Pixels) -> None:
    images = digit_set(TRAIN)
    before = encoder.norm.running_mean.clone()  # type: ignore[union-attr]
    features, labels = extract_features(encoder, images, size=8, batch_size=500)
    expected = (images.batch(range(1200)).images.float() / 255 - images.mean[0]) / images.std[0]
    torch.testing.assert_close(features, expected.flatten(1) / math.sqrt(1 + encoder.norm.eps))
    assert labels is not None
    assert labels.tolist() == load_digits().target[:1200].tolist()
    assert torch.equal(encoder.norm.running_mean, before)  # type: ignore[arg-type]
    assert (encoder.training, encoder.norm.training, encoder.frozen.training) == (True, True, False)


def test_modes_are_put_back_when_the_encoder_fails() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        extract_features(encoder, digit_set(TRAIN), size=8)
    assert encoder.training


def test_features_are_float32_constants_that_autograd_may_use() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    full = extract_features(encoder, digit_set(TRAIN), size=8).features
    half = extract_features(encoder, digit_set(TRAIN), size=8, dtype=torch.bfloat16).features
    assert half.dtype == torch.float32
    assert not full.requires_grad
    assert 0 < (half - full).abs().max() < 0.05
    layer = nn.Linear(8, 1)
    layer(full).sum().backward()
    torch.testing.assert_close(layer.weight.grad, full.sum(0, keepdim=True), rtol=1e-5, atol=1e-2)


def test_evaluate_gives_what_its_parts_give(encoder: Pixels) -> None:
    train, test = digit_set(TRAIN), digit_set(TEST)
    found = evaluate(
        encoder, train, {"test": test}, size=8, protocol=("knn", "linear", "linear_sgd"), batch_size=100
    )
    bank = extract_features(encoder, train, size=8)
    asked = extract_features(encoder, test, size=8, mean=train.mean, std=train.std)
    assert bank.labels is not None
    assert asked.labels is not None
    expected = {
        "knn": knn(bank.features, bank.labels, asked.features, asked.labels),
        "linear": linear_probe(bank.features, bank.labels, asked.features, asked.labels),
        "linear_sgd": linear_probe(bank.features, bank.labels, asked.features, asked.labels, solver="sgd"),
    }
    for name, accuracy in expected.items():
        assert found[name] == pytest.approx(accuracy.top1)
        assert found[f"{name}_top5"] == pytest.approx(accuracy.top5)
    assert found["erank_features"] == pytest.approx(float(effective_rank(bank.features)))
    assert found["rankme_features"] == pytest.approx(float(rankme(bank.features)))
    assert found["branch"] == "online"
    assert found["notes"] == []
    assert set(cast(dict[str, str], found["protocol"])) == {*expected, "erank_features", "rankme_features"}
    assert "k 20, t 0.1" in cast(dict[str, str], found["protocol"])["knn"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_set_is_scored_and_the_first_labelled_one_is_flat(encoder: Pixels) -> None:
    tests = {
        "bare": digit_set(slice(1200, 1250), labelled=False),
        "a": digit_set(slice(1200, 1500)),
        "b": digit_set(slice(1500, None)),
    }
    found = evaluate(encoder, digit_set(TRAIN), tests, size=8, protocol=["knn"], branch="target")
    sets = cast(dict[str, dict[str, float]], found["sets"])
    assert sets["bare"] == {"images": 50}
    assert found["knn"] == sets["a"]["knn"] != sets["b"]["knn"]
    assert sets["a"]["images"] == 300
    assert found["branch"] == "target"
    assert found["notes"] == ["evaluation set 'bare' has no labels, so there is no accuracy on it"]
    assert "linear" not in found


def test_labels_are_matched_by_class_name(encoder: Pixels) -> None:
    train, test = digit_set(TRAIN), digit_set(TEST)
    backwards = image_set(
        test.batch(range(len(test))).images,
        9 - cast(Tensor, test.labels),
        classes=tuple("9876543210"),
        name="backwards",
    )
    found = evaluate(encoder, train, {"same": test, "backwards": backwards}, size=8, protocol=["knn"])
    sets = cast(dict[str, dict[str, float]], found["sets"])
    assert sets["backwards"] == sets["same"]
    assert sets["same"]["knn"] > 0.9


@pytest.mark.parametrize("kind", ["unlabelled", "one class", "no test labels", "no test"])
def test_without_labels_there_are_label_free_scores_and_a_note(kind: str, encoder: Pixels) -> None:
    train = digit_set(TRAIN, labelled=kind != "unlabelled")
    tests = {"test": digit_set(TEST, labelled=kind != "no test labels")}
    if kind == "one class":
        train = image_set(train.batch(range(100)).images, torch.full((100,), 3), classes=None, name="threes")
    found = evaluate(encoder, train, {} if kind == "no test" else tests, size=8)
    assert cast(float, found["erank_features"]) > 1
    assert cast(float, found["rankme_features"]) > 1
    assert not {"knn", "linear"} & found.keys()
    assert "label-free scores only" in cast(list[str], found["notes"])[-1]


def test_ranks_are_of_rows_spread_over_a_sorted_set(encoder: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    train = digit_set(TRAIN)
    order = cast(Tensor, train.labels).argsort(stable=True)
    images = train.batch(order).images
    train = image_set(images, cast(Tensor, train.labels)[order], classes=None, name="sorted")
    monkeypatch.setattr(evaluation, "RANK_ROWS", 100)
    found = evaluate(encoder, train, {}, size=8)
    features = extract_features(encoder, train, size=8).features
    assert found["erank_features"] == pytest.approx(float(effective_rank(features[::12])))
    assert "100 training images" in cast(dict[str, str], found["protocol"])["erank_features"]


def test_zero_features_have_no_rank_and_non_finite_ones_are_refused() -> None:
    train, tests = digit_set(TRAIN), {"test": digit_set(TEST)}
    found = evaluate(Pixels(0.0), train, tests, size=8)
    assert (found["erank_features"], found["rankme_features"]) == (None, None)
    assert found["notes"] == ["every feature is zero, so no effective rank is defined"]
    assert cast(float, found["linear"]) < 0.2
    json.dumps(found, allow_nan=False)
    with pytest.raises(NonFiniteError, match="not finite for 1200 of 1200 images"):
        evaluate(Pixels(math.nan), train, tests, size=8)


def test_sets_that_do_not_fit_are_refused_before_any_work(encoder: Pixels) -> None:
    train = digit_set(TRAIN)
    stranger = digit_set(TEST, classes=("ten", *"123456789"))
    with pytest.raises(UserError, match="'other' has classes that the training set lacks: ten"):
        check_sets(train, {"other": stranger})
    colour = image_set(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, classes=None, name="colour")
    with pytest.raises(UserError, match="'c' has 3-channel images, the training set 1"):
        evaluate(encoder, train, {"c": colour}, size=8)
    with pytest.raises(UserError, match="unknown protocol 'liner': did you mean 'linear'"):
        evaluate(encoder, train, {}, size=8, protocol=["liner"])
