"""The scores of an encoder after training, as one dictionary for `results.json`.

Shapes: N images, B in a batch, C channels, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from rankgap.choices import Protocol, Side
from rankgap.data import ImageSet
from rankgap.errors import NonFiniteError, UserError, unknown
from rankgap.evaluate.accuracy import Hits
from rankgap.evaluate.features import FeatureOptions, Features, device_of, extract_features, feature_batches
from rankgap.evaluate.linear import LinearClassifier, fit_lbfgs, fit_sgd
from rankgap.evaluate.neighbours import Neighbours
from rankgap.spectra.effective_rank import effective_rank, rankme

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Scorer = Neighbours | LinearClassifier
RANK_ROWS = 25_600  # RankMe's sample (Garrido et al. 2023, section 4)

_FROZEN = "frozen encoder, centre view, no augmentation"
_LINEAR = (
    f"multinomial logistic regression, L2, C = 0.1 (fixed), standardised features, full-batch L-BFGS; {_FROZEN}"
)
_LINEAR_SGD = (
    f"linear layer, SGD momentum 0.9, lr 0.3, 100 epochs, batch 256, lr x 0.1 at epochs 60 and 80; {_FROZEN}"
)


class _Ranks(NamedTuple):
    """The effective ranks of the training features.

    Attributes:
        scores: name -> effective rank; None where every feature is 0.
        protocol: name -> how it was computed.
        notes: what could not be computed, and why.
    """

    scores: dict[str, float | None]
    protocol: dict[str, str]
    notes: list[str]


class _Fitted(NamedTuple):
    """A classifier trained by a protocol.

    Attributes:
        scorer: the classifier.
        protocol: how it was trained.
    """

    scorer: Scorer
    protocol: str


def check_sets(train: ImageSet, tests: Mapping[str, ImageSet]) -> None:
    """Check before training that `evaluate` will be able to use the evaluation sets after it.

    Raises:
        UserError: an evaluation set has another number of channels than the training set, or classes that the
            training set lacks.
    """
    for name, test in tests.items():
        if test.channels != train.channels:
            raise UserError(
                f"evaluation set {name!r} has {test.channels}-channel images, the training set {train.channels}"
            )
        _label_map(name, train, test)


def _label_map(name: str, train: ImageSet, test: ImageSet) -> Tensor | None:
    """The training label of the same class name for each test label; None if the labels are the same."""
    if train.classes is None or test.classes is None or train.labels is None or test.labels is None:
        return None
    if extra := sorted(set(test.classes) - set(train.classes)):
        raise UserError(f"evaluation set {name!r} has classes that the training set lacks: {', '.join(extra[:8])}")
    if test.classes == train.classes[: len(test.classes)]:
        return None
    return torch.tensor([train.classes.index(c) for c in test.classes])


def evaluate(
    encoder: nn.Module,
    train: ImageSet,
    tests: Mapping[str, ImageSet],
    *,
    size: int,
    protocol: Sequence[str] = ("knn", "linear"),
    branch: Side = "online",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    workers: int = 0,
    seed: int = 0,
) -> dict[str, object]:
    """Score a frozen encoder: kNN and linear accuracy where there are labels, and effective ranks in any case.

    The training features are held once. Test images stream through, so memory does not grow with them.

    Args:
        encoder: (B, C, size, size) -> (B, F).
        train: the images of the kNN bank and of the linear classifier's training; their mean and deviation
            normalise every set.
        tests: evaluation sets by name; the first one's scores are also given flat.
        size: side of a view in pixels.
        protocol: "knn" (k 20, t 0.1), "linear" (L-BFGS), "linear_sgd" (the paper's schedule); empty for effective
            ranks alone.
        branch: the branch that the encoder comes from; it is recorded and changes nothing else.
        batch_size: images per forward pass, see `feature_batches`.
        device: where to compute; the encoder's own device by default. The encoder is moved there.
        dtype: the type to autocast the encoder to; None computes in its own type.
        workers: processes that decode files ahead.
        seed: of the order in which "linear_sgd" draws rows.

    Returns:
        A dictionary for JSON, in which accuracies are shares in [0, 1]. `knn`, `knn_top5`, `linear`, ... of the
        first labelled set (top-5 only above five classes); `erank_features` and `rankme_features` (None if every
        feature is 0); `branch`; `sets`: name -> its scores and number of images; `protocol`: score -> how it was
        computed; `notes`: what could not be computed, and why.

    Raises:
        UserError: a protocol is unknown, or the sets do not fit (`check_sets`).
        NonFiniteError: the encoder's features are not finite.
    """
    for name in protocol:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    check_sets(train, tests)
    options: FeatureOptions = {
        "size": size,
        "batch_size": batch_size,
        "device": device_of(encoder) if device is None else torch.device(device),
        "dtype": dtype,
        "workers": workers,
    }
    bank = extract_features(encoder, train, **options)
    ranks = _ranks(bank.features)
    notes = list(ranks.notes)
    if protocol and (obstacle := _obstacle(bank.labels)):
        notes.append(f"{obstacle}, so there are label-free scores only")
        protocol = ()
    classes = 0 if train.labels is None else max(len(train.classes or ()), 1 + int(train.labels.max()))
    fitted = {name: _fit(name, bank, classes, seed) for name in protocol}
    sets: dict[str, dict[str, float | int]] = {}
    for name, test in tests.items():
        sets[name] = {"images": len(test)}
        if fitted and test.labels is None:
            notes.append(f"evaluation set {name!r} has no labels, so there is no accuracy on it")
        elif fitted:
            batches = feature_batches(encoder, test, mean=train.mean, std=train.std, **options)
            sets[name] |= _accuracies(fitted, batches, _label_map(name, train, test), classes)
    scored = [scores for scores in sets.values() if len(scores) > 1]
    if fitted and not scored:
        notes.append(
            "no evaluation set has labels, so there are label-free scores only; --eval NAME=DATA adds a set"
        )
    flat = {key: value for scores in scored[:1] for key, value in scores.items() if key != "images"}
    protocols = ranks.protocol | ({name: each.protocol for name, each in fitted.items()} if scored else {})
    return {"branch": branch, **ranks.scores, **flat, "sets": sets, "protocol": protocols, "notes": notes}


def _ranks(features: Tensor) -> _Ranks:
    """Effective rank and RankMe of at most `RANK_ROWS` rows, evenly spaced because sets may be sorted by class."""
    if bad := int((~features.isfinite()).any(1).sum()):
        raise NonFiniteError(f"the encoder's features are not finite for {bad} of {len(features)} images")
    count = min(RANK_ROWS, len(features))
    rows = torch.arange(count, device=features.device) * len(features) // count
    sample = features[rows]
    protocol = {
        "erank_features": (
            f"exp entropy of the uncentred correlation's eigenvalues, {count} training images, {_FROZEN}"
        ),
        "rankme_features": f"RankMe (singular values, eps 1e-7), {count} training images, {_FROZEN}",
    }
    if not sample.any():
        note = "every feature is zero, so no effective rank is defined"
        return _Ranks(dict.fromkeys(protocol), protocol, [note])
    scores: dict[str, float | None] = {
        "erank_features": float(effective_rank(sample)),
        "rankme_features": float(rankme(sample)),
    }
    return _Ranks(scores, protocol, [])


def _obstacle(labels: Tensor | None) -> str | None:
    """Why these labels cannot train a classifier; None if they can."""
    if labels is None:
        return "the training images have no labels"
    if bool((labels == labels[0]).all()):
        return "the training images are all of one class"
    return None


def _fit(name: str, bank: Features, classes: int, seed: int) -> _Fitted:
    """The classifier of one protocol."""
    features, labels = bank
    assert labels is not None
    if name == "knn":
        near = Neighbours(features, labels, classes=classes)
        votes = f"weighted kNN, k {near.k}, t {near.temperature:g}, cosine, bank of {len(features)}"
        return _Fitted(near, f"{votes}; {_FROZEN}")
    if name == "linear":
        return _Fitted(fit_lbfgs(features, labels, classes=classes), _LINEAR)
    return _Fitted(fit_sgd(features, labels, classes=classes, seed=seed), _LINEAR_SGD)


def _accuracies(
    fitted: Mapping[str, _Fitted], batches: Iterable[Features], label_map: Tensor | None, classes: int
) -> dict[str, float]:
    """Every classifier's accuracy, in one pass over an evaluation set."""
    hits = {name: Hits(classes) for name in fitted}
    for features, labels in batches:
        assert labels is not None
        if label_map is not None:
            labels = label_map.to(labels.device)[labels]
        for name, each in fitted.items():
            hits[name].update(each.scorer.scores(features), labels)
    found: dict[str, float] = {}
    for name, count in hits.items():
        accuracy = count.accuracy()
        found[name] = accuracy.top1
        if accuracy.top5 is not None:
            found[f"{name}_top5"] = accuracy.top5
    return found
