"""Everything an encoder is scored on after training, as one dictionary for `results.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rankgap.data import ImageSet
from rankgap.errors import NonFiniteError, UserError, unknown
from rankgap.evaluate.accuracy import Hits
from rankgap.evaluate.features import Features, device_of, extract_features, feature_batches
from rankgap.evaluate.linear import LinearClassifier, fit_lbfgs, fit_sgd
from rankgap.evaluate.neighbours import Neighbours
from rankgap.spectra.effective_rank import effective_rank, rankme

Protocol = Literal["knn", "linear", "linear_sgd"]
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


def check_sets(train: ImageSet, tests: Mapping[str, ImageSet]) -> None:
    """Say before training what `evaluate` would stumble over after it.

    Raises:
        UserError: an evaluation set has other channels than the training set, or classes that it lacks.
    """
    for name, test in tests.items():
        if test.channels != train.channels:
            raise UserError(
                f"evaluation set {name!r} has {test.channels}-channel images, the training set {train.channels}"
            )
        _label_map(name, train, test)


def _label_map(name: str, train: ImageSet, test: ImageSet) -> Tensor | None:
    """Test label -> training label of the same class name; None where they are the same."""
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
    branch: Literal["online", "target"] = "online",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    workers: int = 0,
    seed: int = 0,
) -> dict[str, object]:
    """Score a frozen encoder: kNN and linear accuracy where there are labels, label-free ranks always.

    The training features are held once; test images stream through, so that memory does not grow with them.

    Args:
        encoder: (B, C, size, size) -> (B, F).
        train: its images are the kNN bank and the linear classifier's training set; its mean and deviation
            normalise every set.
        tests: evaluation sets by name; the first one's scores are also given flat.
        size: side of a view in pixels.
        protocol: `knn` (k 20, t 0.1), `linear` (L-BFGS), `linear_sgd` (the paper's schedule);
            empty for ranks alone.
        branch: which encoder this is; recorded, not acted on.
        batch_size: images a forward pass, see `feature_batches`.
        device: where to compute (the encoder is moved there); the encoder's own by default.
        dtype: autocast the encoder to this type; None does not.
        workers: processes that decode files ahead.
        seed: of `linear_sgd`'s order.

    Returns:
        For JSON; accuracies are shares in [0, 1]. `knn`, `knn_top5`, `linear`, ... of the first labelled set
        (top-5 only above five classes); `erank_features`, `rankme_features` (None where every feature is 0);
        `branch`; `sets`: name -> its scores and number of images; `protocol`: score -> what was done; `notes`:
        what could not be done, and why.

    Raises:
        UserError: an unknown protocol, or sets that do not fit (`check_sets`).
        NonFiniteError: the encoder's features are not finite.
    """
    for name in protocol:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    check_sets(train, tests)
    device = device_of(encoder) if device is None else torch.device(device)
    forward: dict[str, Any] = {
        "size": size,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "workers": workers,
    }
    bank = extract_features(encoder, train, **forward)
    results: dict[str, object] = {"branch": branch}
    protocols: dict[str, str] = {}
    notes: list[str] = []
    _score_ranks(bank.features, results, protocols, notes)
    classes = 0 if train.labels is None else max(len(train.classes or ()), 1 + int(train.labels.max()))
    scorers = _fit(bank, classes, protocol, seed, protocols, notes)
    sets: dict[str, dict[str, float | int]] = {}
    for name, test in tests.items():
        sets[name] = {"images": len(test)}
        if not scorers:
            continue
        if test.labels is None:
            notes.append(f"evaluation set {name!r} has no labels: no accuracy on it")
            continue
        batches = feature_batches(encoder, test, mean=train.mean, std=train.std, **forward)
        sets[name] |= _accuracies(scorers, batches, _label_map(name, train, test), classes)
    scored = [s for s in sets.values() if len(s) > 1]
    if scored:
        results |= {key: value for key, value in scored[0].items() if key != "images"}
    elif scorers:
        notes.append("no labelled evaluation set: label-free scores alone")
    return results | {"sets": sets, "protocol": protocols, "notes": notes}


def _score_ranks(
    features: Tensor, results: dict[str, object], protocols: dict[str, str], notes: list[str]
) -> None:
    """Effective rank and RankMe of at most `RANK_ROWS` rows, evenly spaced because sets may be sorted by class."""
    if bad := int((~features.isfinite()).any(1).sum()):
        raise NonFiniteError(f"the encoder's features are not finite for {bad} of {len(features)} images")
    count = min(RANK_ROWS, len(features))
    rows = torch.arange(count, device=features.device) * len(features) // count
    sample = features[rows]
    protocols["erank_features"] = (
        f"exp entropy of the uncentred correlation's eigenvalues, {count} training images, {_FROZEN}"
    )
    protocols["rankme_features"] = f"RankMe (singular values, eps 1e-7), {count} training images, {_FROZEN}"
    if not sample.any():
        notes.append("every feature is zero: no rank is defined")
        results |= {"erank_features": None, "rankme_features": None}
        return
    results["erank_features"] = float(effective_rank(sample))
    results["rankme_features"] = float(rankme(sample))


def _fit(
    bank: Features,
    classes: int,
    protocol: Sequence[str],
    seed: int,
    protocols: dict[str, str],
    notes: list[str],
) -> dict[str, Scorer]:
    """A classifier for each protocol; none, with a note, where the labels cannot train one."""
    features, labels = bank
    if not protocol:
        return {}
    if labels is None:
        notes.append("the training images have no labels: label-free scores alone")
        return {}
    if bool((labels == labels[0]).all()):
        notes.append("the training images are of one class: label-free scores alone")
        return {}
    scorers: dict[str, Scorer] = {}
    for name in protocol:
        if name == "knn":
            scorers[name] = near = Neighbours(features, labels, classes=classes)
            protocols[name] = (
                f"weighted kNN, k {near.k}, t {near.temperature:g}, cosine, bank of {len(features)}; {_FROZEN}"
            )
        elif name == "linear":
            scorers[name] = fit_lbfgs(features, labels, classes=classes)
            protocols[name] = _LINEAR
        else:
            scorers[name] = fit_sgd(features, labels, classes=classes, seed=seed)
            protocols[name] = _LINEAR_SGD
    return scorers


def _accuracies(
    scorers: Mapping[str, Scorer], batches: Iterable[Features], label_map: Tensor | None, classes: int
) -> dict[str, float]:
    """Every classifier's accuracy on one pass over an evaluation set."""
    hits = {name: Hits(classes) for name in scorers}
    for features, labels in batches:
        assert labels is not None
        if label_map is not None:
            labels = label_map.to(labels.device)[labels]
        for name, scorer in scorers.items():
            hits[name].update(scorer.scores(features), labels)
    found: dict[str, float] = {}
    for name, count in hits.items():
        accuracy = count.accuracy()
        found[name] = accuracy.top1
        if accuracy.top5 is not None:
            found[f"{name}_top5"] = accuracy.top5
    return found
