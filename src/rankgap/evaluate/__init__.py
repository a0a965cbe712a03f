"""Scores of frozen features: weighted kNN, linear probes, and scores that need no labels."""

from rankgap.evaluate.accuracy import Accuracy
from rankgap.evaluate.dense import DenseStructure, dense_structure, dse
from rankgap.evaluate.evaluation import PROTOCOLS, check_sets, evaluate
from rankgap.evaluate.features import Features, extract_features, feature_batches
from rankgap.evaluate.label_free import (
    alignment,
    alpha_req,
    cluster_learnability,
    intrinsic_dimension,
    lidar,
    log_local_dimension,
    nesum,
    participation_ratio,
    stable_rank,
    uniformity,
)
from rankgap.evaluate.linear import LinearClassifier, fit_lbfgs, fit_sgd, linear_probe
from rankgap.evaluate.neighbours import Neighbours, knn

__all__ = [
    "PROTOCOLS",
    "Accuracy",
    "DenseStructure",
    "Features",
    "LinearClassifier",
    "Neighbours",
    "alignment",
    "alpha_req",
    "check_sets",
    "cluster_learnability",
    "dense_structure",
    "dse",
    "evaluate",
    "extract_features",
    "feature_batches",
    "fit_lbfgs",
    "fit_sgd",
    "intrinsic_dimension",
    "knn",
    "lidar",
    "linear_probe",
    "log_local_dimension",
    "nesum",
    "participation_ratio",
    "stable_rank",
    "uniformity",
]
