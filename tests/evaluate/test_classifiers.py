from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from rankgap.errors import UserError
from rankgap.evaluate import (
    Accuracy,
    Neighbours,
    fit_lbfgs,
    fit_sgd,
    knn,
    linear,
    linear_probe,
    neighbours,
)
from tests.evaluate.feature_samples import clusters, digits


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    rows=st.integers(2, 40),
    queries=st.integers(1, 12),
    classes=st.integers(2, 7),
    k=st.integers(1, 50),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_votes_follow_their_definition(
    rows: int, queries: int, classes: int, k: int, temperature: float, seed: int
) -> None:
    bank, labels = clusters(rows, min(classes, rows), 5, seed)
    asked, _ = clusters(queries, classes, 5, seed + 1)
    votes = np.zeros((queries, classes))
    unit_bank, unit_asked = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (bank, asked))
    similarity = (unit_asked @ unit_bank.T).numpy()
    for i in range(queries):
        for j in np.argsort(-similarity[i])[:k]:
            votes[i, labels[j]] += math.exp(similarity[i, j] / temperature)
    scores = Neighbours(bank, labels, k=k, temperature=temperature, classes=classes).scores(asked)
    with np.errstate(divide="ignore"):
        expected = np.log(votes / votes.max(1, keepdims=True))
    found = (scores - scores.amax(1, keepdim=True)).numpy()
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=2e-4)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))


def test_knn_agrees_with_scikit_learn() -> None:
    bank, labels, queries, query_labels = digits()
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
    reference.fit(bank.numpy(), labels.numpy())
    near = Neighbours(bank, labels)
    np.testing.assert_array_equal(near.scores(queries).argmax(1), reference.predict(queries.numpy()))
    accuracy = knn(bank, labels, queries, query_labels)
    assert accuracy.top1 == pytest.approx(reference.score(queries.numpy(), query_labels.numpy()))
    assert accuracy.top5 is not None
    assert accuracy.top1 < accuracy.top5 <= 1


def test_blocks_of_queries_and_bank_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, queries, query_labels = digits()
    whole = Neighbours(bank, labels).nearest(queries)
    accuracy = knn(bank, labels, queries, query_labels)
    monkeypatch.setattr(neighbours, "BANK", 17)  # below k, and not a divisor
    monkeypatch.setattr(neighbours, "QUERIES", 100)
    parts = Neighbours(bank, labels).nearest(queries)
    torch.testing.assert_close(parts[0], whole[0])
    assert (parts[1] == whole[1]).float().mean() > 0.999  # but for ties
    assert knn(bank, labels, queries, query_labels) == accuracy


def test_a_bank_smaller_than_k_votes_as_a_whole() -> None:
    near = Neighbours(torch.eye(3), torch.tensor([0, 1, 1]), k=20)
    assert near.k == 3
    votes = near.scores(torch.tensor([[1.0, 0.0, 0.0]])).exp()
    torch.testing.assert_close(votes, torch.tensor([[1.0, 2 * math.exp(-10)]]))


def test_a_low_temperature_does_not_overflow() -> None:
    bank, labels = clusters(200, 4, 8)
    sharp = Neighbours(bank, labels, temperature=0.005).scores(bank)
    nearest = Neighbours(bank, labels, k=1).scores(bank)
    assert torch.equal(sharp.argmax(1), nearest.argmax(1))


def test_half_precision_features_are_compared_in_float32() -> None:
    bank, labels, queries, _ = (t.bfloat16() if t.is_floating_point() else t for t in digits())
    half, full = Neighbours(bank, labels), Neighbours(bank.float(), labels)
    assert torch.equal(half.scores(queries), full.scores(queries.float()))
    assert torch.equal(fit_lbfgs(bank, labels).weight, fit_lbfgs(bank.float(), labels).weight)


def test_a_class_without_a_vote_is_never_an_answer() -> None:
    bank, labels = torch.eye(7), torch.arange(7)
    assert knn(bank, labels, bank[:1], torch.tensor([6]), k=2) == Accuracy(0.0, 0.0)
    assert knn(bank, labels, bank[:2], torch.tensor([0, 6]), k=7).top1 == 0.5


def test_top5_needs_more_than_five_classes() -> None:
    assert knn(torch.eye(5), torch.arange(5), torch.eye(5), torch.arange(5)) == Accuracy(1.0, None)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_lbfgs_finds_scikit_learns_minimum(c: float) -> None:
    x, y, queries, _ = digits(torch.float64)
    found = fit_lbfgs(x, y, c=c, iterations=1000, tolerance=1e-9)
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(scaler.transform(x.numpy()), y.numpy())
    weight = found.weight.numpy() * scaler.scale_[:, None]
    varies = x.std(0).numpy() > 0
    np.testing.assert_allclose(weight[varies], reference.coef_.T[varies], atol=1e-4)
    expected = reference.decision_function(scaler.transform(queries.numpy()))
    scores = found.scores(queries).numpy()
    np.testing.assert_allclose(scores - scores.mean(1, keepdims=True), expected, atol=2e-3)


def test_linear_probe_is_as_accurate_as_scikit_learn() -> None:
    x, y, queries, query_labels = digits()
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(x.numpy()), y.numpy())
    expected = reference.score(scaler.transform(queries.numpy()), query_labels.numpy())
    assert linear_probe(x, y, queries, query_labels).top1 == pytest.approx(expected, abs=0.002)


def test_lbfgs_does_not_depend_on_the_features_scale_offset_or_basis_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = clusters(300, 4, 6)
    expected = fit_lbfgs(x, y, tolerance=1e-6).scores(x)
    scale, offset = torch.logspace(-3, 3, 6), torch.tensor([0.0, 1.0, -1.0, 2.0, 5.0, 100.0])
    torch.testing.assert_close(
        fit_lbfgs(x * scale + offset * scale, y, tolerance=1e-6).scores(x * scale + offset * scale),
        expected,
        atol=5e-3,
        rtol=1e-3,
    )
    monkeypatch.setattr(linear, "BLOCK", 4 * 7)  # 7 rows at once
    torch.testing.assert_close(fit_lbfgs(x, y, tolerance=1e-6).scores(x), expected, atol=5e-3, rtol=1e-3)


def test_collapsed_features_are_solved_and_constant_ones_ignored() -> None:
    x, y = clusters(400, 4, 6)
    line = x[:, :1] @ torch.randn(1, 32, generator=torch.Generator().manual_seed(0))  # rank one
    classifier = fit_lbfgs(torch.cat([line + 3, torch.full((400, 2), 7.3)], 1), y)
    assert classifier.weight[-2:].abs().max() == 0
    alone = fit_lbfgs(x[:, :1], y, c=0.1 * 32)  # 32 equal columns share one weight's penalty
    scores = classifier.scores(torch.cat([line + 3, torch.full((400, 2), 7.3)], 1))
    torch.testing.assert_close(scores.softmax(1), alone.scores(x[:, :1]).softmax(1), atol=5e-3, rtol=0)


def test_fit_sgd_follows_momentum_and_schedule() -> None:
    x, y = clusters(60, 3, 4)
    found = fit_sgd(x, y, lr=0.5, epochs=10, batch_size=60)  # one full batch an epoch: the order does not matter
    data, one_hot = np.c_[x.numpy(), np.ones(60)], np.eye(3)[y.numpy()]
    weight, velocity = np.zeros((5, 3)), np.zeros((5, 3))
    for epoch in range(10):
        p = np.exp(data @ weight)
        gradient = data.T @ (p / p.sum(1, keepdims=True) - one_hot) / 60
        velocity = 0.9 * velocity + gradient
        weight -= 0.5 * 60 / 256 * (1 if epoch < 6 else 0.1 if epoch < 8 else 0.01) * velocity
    np.testing.assert_allclose(found.weight.numpy(), weight[:4], atol=1e-4)
    np.testing.assert_allclose(found.bias.numpy(), weight[4], atol=1e-4)


def test_sgd_probe_learns_and_repeats_for_a_seed() -> None:
    x, y, queries, query_labels = digits()
    first, again, other = (fit_sgd(x / 16, y, epochs=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert (first.scores(queries / 16).argmax(1) == query_labels).float().mean() > 0.85


def test_sgd_probe_says_when_it_diverges() -> None:
    x, y = clusters(64, 3, 4)
    with pytest.raises(UserError, match=r"diverged at lr 1e\+30.*lower it"):
        fit_sgd(x * 1e10, y, lr=1e30, epochs=3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0], r"one label for each of 4 rows, got shape \(3,\)"),
        ([0, 1, -1, 0], "one is -1"),
        ([2, 2, 2, 2], "every label is 2: a classifier needs at least two classes"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels: list[int], message: str) -> None:
    for fit in (fit_lbfgs, fit_sgd, Neighbours):
        with pytest.raises(UserError, match=message):
            fit(torch.randn(4, 3), torch.tensor(labels))


def test_bad_settings_are_refused() -> None:
    bank, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(UserError, match="expected k >= 1"):
        Neighbours(bank, labels, k=0)
    with pytest.raises(UserError, match="temperature > 0"):
        Neighbours(bank, labels, temperature=0)
    with pytest.raises(UserError, match="expected labels below classes=2, but the bank has label 2"):
        Neighbours(bank, labels, classes=2)
    with pytest.raises(UserError, match="expected a positive c"):
        fit_lbfgs(bank, labels, c=0)
    with pytest.raises(UserError, match="unknown solver 'lbgfs': did you mean 'lbfgs'"):
        linear_probe(bank, labels, bank, labels, solver="lbgfs")  # type: ignore[arg-type]
    for score in (knn, linear_probe):
        with pytest.raises(UserError, match=r"one label for each of 3 rows, got shape \(2,\)"):
            score(bank, labels, bank, labels[:2])
