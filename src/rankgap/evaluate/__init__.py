"""Scores of frozen features: weighted kNN, linear probes, label-free ranks."""

from rankgap.evaluate.accuracy import Accuracy
from rankgap.evaluate.evaluation import PROTOCOLS, Protocol, check_sets, evaluate
from rankgap.evaluate.features import Features, extract_features, feature_batches
from rankgap.evaluate.linear import LinearClassifier, fit_lbfgs, fit_sgd, linear_probe
from rankgap.evaluate.neighbours import Neighbours, knn

__all__ = [
    "PROTOCOLS",
    "Accuracy",
    "Features",
    "LinearClassifier",
    "Neighbours",
    "Protocol",
    "check_sets",
    "evaluate",
    "extract_features",
    "feature_batches",
    "fit_lbfgs",
    "fit_sgd",
    "knn",
    "linear_probe",
]
