"""Choosing a checkpoint without labels: every checkpoint of a run, rated on one fixed sample of its images."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rankgap.choices import Side
from rankgap.data import ImageSet
from rankgap.errors import UserError
from rankgap.evaluate.features import extract_features
from rankgap.evaluate.scores import SCORES, TOKEN_IMAGES, Rated, RunScores, rate, view_features
from rankgap.model.backbones import TokenEncoder
from rankgap.run.files import check_writable
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore


def score_run(
    folder: RunFolder,
    *,
    images: int = 2048,
    repeats: int = 20,
    branch: Side = "online",
    data: str | None = None,
) -> RunScores:
    """Rate every checkpoint of a run on one fixed sample of its training images, and write `scores.json`.

    Args:
        folder: the run folder.
        images: number of images in the sample.
        repeats: number of half-samples for each interval.
        branch: the branch whose encoder is scored.
        data: the new location of the run's images; by default the recorded one.

    Raises:
        UserError: there is no run, no checkpoint or no data, or there are too few images.
    """
    if images < 8 or repeats < 2:
        raise UserError(f"a score needs at least 8 images and 2 repeats, got {images} and {repeats}")
    check_writable(folder.path)
    paths = folder.checkpoints()
    if not paths:
        folder.saved()  # a folder that holds no run says so
        raise UserError(f"{folder.path} has no checkpoint yet ({folder.checkpoint})")
    changes = {} if data is None else {"data": data}
    plan = restore(folder.path, checkpoint=paths[0], **changes)
    sample, encoder = plan.train.sample(images), plan.model.encoder(branch)
    few = sample.sample(TOKEN_IMAGES)
    missing = _why_no_tokens(encoder, few, plan.size)
    steps: dict[str, int] = {}
    rated: dict[str, dict[str, Rated]] = {}
    for path in paths:
        state = folder.load_checkpoint(path)
        twin = next((name for name, step in steps.items() if step == state.step), None)
        steps[path.stem] = state.step
        if twin is not None:  # one step under two names
            rated[path.stem] = rated[twin]
            continue
        state.load_model(plan.model)
        inputs = {
            "features": extract_features(encoder, sample, size=plan.size).features,
            "views": view_features(encoder, sample, plan.target_views()),
        }
        if not missing:
            inputs["tokens"] = extract_features(TokenEncoder(encoder), few, size=plan.size).features
        rated[path.stem] = {
            name: rate(s, inputs[s.takes], repeats=repeats) for name, s in SCORES.items() if s.takes in inputs
        }
    found = RunScores(
        title=plan.config.title,
        images=len(sample),
        steps=steps,
        rated=rated,
        notes=(*plan.differences, *missing),
    )
    folder.write_scores(_plain(found, branch))
    return found


def _why_no_tokens(encoder: nn.Module, images: ImageSet, size: int) -> list[str]:
    """One sentence on why the scores of tokens are left out; empty if they are not."""
    try:
        tokens = extract_features(TokenEncoder(encoder), images.sample(1), size=size).features
    except UserError as error:
        return [f"the scores of tokens are left out: {error}"]
    if tokens.shape[1] > 1:
        return []
    return [f"the scores of tokens are left out: the encoder's feature map has one place for a view of {size} px"]


def _plain(found: RunScores, branch: Side) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "images": found.images,
        "branch": branch,
        "notes": list(found.notes),
        "interval": "1.96 standard deviations over random halves of the sample",
        "checkpoints": {
            name: {"step": found.steps[name]}
            | {score: {"value": number(r.value), "half_width": number(r.half)} for score, r in scores.items()}
            for name, scores in found.rated.items()
        },
    }
