"""The words that options take. This module loads no library, so that a command's help is quick."""

from __future__ import annotations

from typing import Literal

Side = Literal["online", "target"]  # the branches of a model
Protocol = Literal["knn", "linear", "linear_sgd"]  # of an evaluation
Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true"]
OnBadImage = Literal["error", "skip"]
SplitName = Literal["all", "train", "test"]
Placing = Literal["tsne", "pca"]  # of images on a map
FormatName = Literal["timm", "safetensors", "onnx", "torch-export", "hf"]  # of an export
