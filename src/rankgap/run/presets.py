"""Presets for small work, and warnings about what is known to fail.

Recipes are published for hundreds of epochs of a large network; most first runs are a few hundred steps of
a small one. `adapt` changes what then goes wrong, and says what it changed and why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rankgap.model.closed_forms import closed_form
from rankgap.model.methods import Method
from rankgap.run.recipes import Recipe
from rankgap.views.random_views import ViewConfig

SMALL_IMAGES = 100_000
SMALL_BATCH = 256
Jitter = tuple[float, float, float, float]
MILD_JITTER: Jitter = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
LR = 0.06  # of SGD, for a batch of 256
SQUARED_LR = LR / 16  # vectors of their own length: the first loss is 16 times that of unit vectors
MILD_CROP = 0.2  # share of the image's area; SimSiam's and MoCo's own least
LONG = 20_000  # optimiser steps; from here on the published schedules fit as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The size of a run.

    Args:
        images: training images.
        batch_size: images a step, over all devices.
        epochs: passes over the images.
        features: width of the encoder's output.
        devices: processes that share a batch.
    """

    images: int
    batch_size: int
    epochs: int
    features: int
    devices: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch; an incomplete last batch is left out."""
        return max(self.images // self.batch_size, 1)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def small(self) -> bool:
        """Whether the preset for small work applies."""
        return self.images <= SMALL_IMAGES and self.batch_size <= SMALL_BATCH and self.steps < LONG


def _milder(view: ViewConfig) -> ViewConfig:
    brightness, contrast, saturation, hue = map(min, view.jitter, MILD_JITTER)
    least, greatest = view.scale
    return dataclasses.replace(
        view,
        jitter=(brightness, contrast, saturation, hue),
        scale=(min(max(least, MILD_CROP), greatest), greatest),
    )


def adapt(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    """A published recipe, made fit for a short run of a small network.

    Args:
        recipe: the published one.
        method: the row it is for; only what the row uses is spoken of.
        work: the size of the run.

    Returns:
        The recipe, and one sentence for each thing changed.
    """
    heads, optimizer, notes = recipe.heads, recipe.optimizer, []
    if optimizer.name != "sgd" or optimizer.lr > 0.1:
        lr = SQUARED_LR if method.alignment == "squared" else LR
        optimizer = dataclasses.replace(
            optimizer, name="sgd", lr=lr, weight_decay=5e-4, final_lr=0.0, decay_all=False
        )
        notes.append(
            f"SGD, lr {lr:g} per 256 images, weight decay 5e-4: {work.steps} steps are too few for the recipe's"
        )
    warmup = min(optimizer.warmup_epochs, 0.1 * work.epochs if work.epochs >= 50 else 0)
    if warmup != optimizer.warmup_epochs:
        optimizer = dataclasses.replace(optimizer, warmup_epochs=warmup)
        notes.append(f"warm-up {warmup:g} epochs: the recipe's is for hundreds of epochs")
    if work.features < 512:
        width = max(256, 2 * work.features)
        projector = tuple(min(width, d) for d in heads.projector)
        if projector != heads.projector:
            # A bottleneck stays one: hidden widths keep their share of the projector's output.
            predictor = tuple(min(width, d * projector[-1] // heads.projector[-1]) for d in heads.predictor)
            heads = dataclasses.replace(heads, projector=projector, predictor=predictor)
            notes.append(f"projector {'-'.join(map(str, projector))}: the encoder is only {work.features} wide")
    if not heads.projector_norm:
        heads = dataclasses.replace(heads, projector_norm=True)
        notes.append("batch norm in the projector: without it a short run stays at the mean of its embeddings")
    views = tuple(map(_milder, recipe.views))
    if [v.scale for v in views] != [v.scale for v in recipe.views]:
        notes.append(f"crops of {MILD_CROP:.0%} of an image or more: smaller ones cost a short run its rank")
    if [v.jitter for v in views] != [v.jitter for v in recipe.views]:
        notes.append(f"colour jitter {MILD_JITTER} at most: under a stronger one a short run assigns uniformly")
    if {"assignment", "sinkhorn", "centred_assignment"} & {*method.online, *method.target}:
        count = min(heads.prototypes, max(work.batch_size, 32))
        freeze = min(heads.freeze_epochs, max(1.0, 0.01 * work.epochs))
        if count != heads.prototypes:
            heads = dataclasses.replace(heads, prototypes=count)
            notes.append(f"{count} prototypes: a batch of {work.batch_size} cannot use more")
        if freeze != heads.freeze_epochs:
            heads = dataclasses.replace(heads, freeze_epochs=freeze)
            notes.append(f"prototypes frozen for {freeze:g} epoch(s)")
    if "sinkhorn" in method.target and heads.queue:
        heads = dataclasses.replace(heads, queue=0)
        notes.append("no queue: the batch alone fills the prototypes")
    slowest = max(1 - 4 / work.steps, 0.9)
    if method.ema and heads.momentum > slowest:
        heads = dataclasses.replace(heads, momentum=slowest)
        notes.append(
            f"EMA momentum {slowest:.4f}: the teacher averages over at most a quarter of the run at first"
        )
    if any((form := closed_form(name)) and form.momentum > slowest for name in method.online):
        heads = dataclasses.replace(heads, correlation_momentum=slowest)
        notes.append(f"correlation momentum {slowest:.4f}: the predictor looks back over a quarter of the run")
    return dataclasses.replace(recipe, heads=heads, optimizer=optimizer, views=views), notes


def warnings(recipe: Recipe, method: Method, work: Work) -> list[str]:
    """Combinations known to fail, one sentence each with what to do; an empty list where there is none."""
    heads, found = recipe.heads, []
    codes = work.batch_size + (heads.queue if "sinkhorn" in method.target else 0)
    if "sinkhorn" in method.target and heads.prototypes > codes:
        found.append(
            f"{heads.prototypes} prototypes, but batch and queue hold {codes} embeddings, so codes cannot be "
            f"balanced: set heads.prototypes to {codes} or less, or lengthen heads.queue"
        )
    memory = 1 / max(1 - heads.momentum, 1e-9)
    if method.ema and memory > work.steps:
        found.append(
            f"EMA momentum {heads.momentum:g} averages over {memory:,.0f} steps and the run has {work.steps}, "
            f"so the teacher stays near its random start: lower heads.momentum"
        )
    if work.batch_size // work.devices < 32:
        found.append(
            f"{work.batch_size // work.devices} images a device and step: they bound the effective rank, and "
            f"batch norm is noisy: use 32 or more"
        )
    if "assignment" in method.online and heads.freeze_epochs >= work.epochs:
        found.append(f"the prototypes are frozen for all {work.epochs} epochs: lower heads.freeze_epochs")
    if work.images % work.batch_size == 1:
        found.append("the last batch of an epoch would hold 1 image, which batch norm cannot take: it is left out")
    return found


def adapt_views(recipe: Recipe, data: str, channels: int) -> tuple[Recipe, list[str]]:
    """The recipe's views, made fit for the images.

    Args:
        recipe: the published one, for natural colour images.
        data: the data set; digits are not natural images.
        channels: channels of an image.
    """
    if data == "digits":
        views = tuple(
            dataclasses.replace(v, scale=(0.5, 1.0), flip=0.0, solarize_p=0.0, blur_p=0.0) for v in recipe.views
        )
        return dataclasses.replace(recipe, views=views), [
            "crops of half a digit or more, no flip, no solarisation: those make another sign of it"
        ]
    if channels not in (1, 3):
        return recipe, [f"{channels} channels: colour is jittered in brightness and contrast alone"]
    return recipe, []
