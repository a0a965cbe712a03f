"""Presets for small runs, and warnings about known failures.

Recipes are published for hundreds of epochs of a large network; most first runs are a few hundred steps of
a small one. `adapt` changes the settings that then go wrong, and says what it changed and why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import nn

from rankgap.errors import UserError
from rankgap.model.assignments import SinkhornOptions
from rankgap.model.branches import DualBranch
from rankgap.model.closed_forms import ClosedForm
from rankgap.model.methods import Method
from rankgap.model.mlp import mixes_images
from rankgap.model.predictor import PredictorOptions
from rankgap.run.recipes import Recipe
from rankgap.run.work import Work
from rankgap.spectra.pair import SIDES
from rankgap.views import ViewConfig

Jitter = tuple[float, float, float, float]
MILD_JITTER: Jitter = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
LR = 0.06  # for SGD and a batch of 256
SQUARED_LR = LR / 16  # without normalisation the first loss is 16 times that of unit vectors
MILD_CROP = 0.2  # share of the image's area; the minimum in SimSiam and MoCo


def _milder(view: ViewConfig) -> ViewConfig:
    """A view with milder jitter and a larger crop; a local view, which the target does not see, is to be small."""
    brightness, contrast, saturation, hue = map(min, view.jitter, MILD_JITTER)
    least, greatest = view.scale
    return replace(
        view,
        jitter=(brightness, contrast, saturation, hue),
        scale=(min(max(least, MILD_CROP), greatest), greatest) if view.target else view.scale,
    )


def adapt(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    """A published recipe, adapted to a short run of a small network.

    Args:
        recipe: the published one.
        method: the row it is for; the sentences only mention what the row uses.
        work: the size of the run.

    Returns:
        The recipe with the options of the row's own maps, and one sentence for each thing changed.
    """
    recipe, notes = recipe.used_by(method), []
    for step in (_optimizer, _widths, _views, _prototypes, _memories):
        recipe, said = step(recipe, method, work)
        notes += said
    return recipe, notes


def _optimizer(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    optimizer, notes = recipe.optimizer, []
    if optimizer.name != "sgd" or optimizer.lr > 0.1:
        lr = SQUARED_LR if method.alignment == "squared" else LR
        optimizer = replace(optimizer, name="sgd", lr=lr, weight_decay=5e-4, final_lr=0.0, decay_all=False)
        few = f"{work.steps} steps are" if work.steps > 1 else "1 step is"
        notes.append(f"SGD, lr {lr:g} per 256 images, weight decay 5e-4: {few} too few for the recipe's optimiser")
    warmup = min(optimizer.warmup_epochs, 0.1 * work.epochs if work.epochs >= 50 else 0)
    if warmup != optimizer.warmup_epochs:
        optimizer = replace(optimizer, warmup_epochs=warmup)
        notes.append(f"warm-up {warmup:g} epochs: the recipe's is meant for hundreds of epochs")
    return replace(recipe, optimizer=optimizer), notes


def _widths(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    projector, online, notes = recipe.projector, dict(recipe.online), []
    if work.features < 512:
        width = max(256, 2 * work.features)
        widths = tuple(min(width, d) for d in projector.widths)
        if widths != projector.widths:
            for name, options in online.items():
                if isinstance(options, PredictorOptions):
                    # Hidden widths keep their share of the projector's output, so that a bottleneck stays one.
                    hidden = tuple(min(width, d * widths[-1] // projector.widths[-1]) for d in options.widths)
                    online[name] = replace(options, widths=hidden)
            projector = replace(projector, widths=widths)
            notes.append(f"projector {'-'.join(map(str, widths))}: the encoder is only {work.features} wide")
    if not projector.norm:
        projector = replace(projector, norm=True)
        notes.append("batch norm in the projector: without it a short run stays at the mean of its embeddings")
    return replace(recipe, projector=projector, online=online), notes


def _views(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    views, notes = tuple(map(_milder, recipe.views)), []
    if [v.scale for v in views] != [v.scale for v in recipe.views]:
        notes.append(f"crops of {MILD_CROP:.0%} of an image or more: smaller ones cost a short run its rank")
    if [v.jitter for v in views] != [v.jitter for v in recipe.views]:
        notes.append(f"colour jitter {MILD_JITTER} at most: with stronger jitter a short run assigns uniformly")
    return replace(recipe, views=views), notes


def _prototypes(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    if not method.assigns:
        return recipe, []
    prototypes, target, notes = recipe.prototypes, dict(recipe.target), []
    count = min(prototypes.count, max(work.batch_size, 32))
    freeze = min(prototypes.freeze_epochs, max(1.0, 0.01 * work.epochs))
    if count != prototypes.count:
        notes.append(f"{count} prototypes: a batch of {work.batch_size} cannot use more")
    if freeze != prototypes.freeze_epochs:
        notes.append(f"prototypes frozen for {freeze:g} of {work.epochs} epochs")
    for name, options in target.items():
        if isinstance(options, SinkhornOptions) and options.queue:
            target[name] = replace(options, queue=0)
            notes.append("no queue: the batch alone fills the prototypes")
    return replace(recipe, prototypes=replace(prototypes, count=count, freeze_epochs=freeze), target=target), notes


def _memories(recipe: Recipe, method: Method, work: Work) -> tuple[Recipe, list[str]]:
    """Shorten the memories of the teacher and of a closed-form predictor: neither may exceed the run."""
    teacher, online, notes = recipe.teacher, dict(recipe.online), []
    slowest = max(1 - 4 / work.steps, 0.9)
    if method.ema and teacher.momentum > slowest:
        teacher = replace(teacher, momentum=slowest)
        notes.append(
            f"EMA momentum {slowest:.4f}: the teacher averages over at most a quarter of the run at first"
        )
    for name, options in online.items():
        if isinstance(options, ClosedForm) and options.momentum > slowest:
            online[name] = replace(options, momentum=slowest)
            notes.append(f"correlation momentum {slowest:.4f}: the predictor looks back over a quarter of the run")
    return replace(recipe, teacher=teacher, online=online), notes


def check_view_sizes(recipe: Recipe, largest: int) -> None:
    """Reject a view that is larger than every image.

    Args:
        recipe: the recipe, with the sizes that its views have in this run.
        largest: the largest shorter side of an image in pixels, or the run's size where that is larger.

    Raises:
        UserError: a view is larger.
    """
    for number, view in enumerate(recipe.views):
        if view.size is not None and view.size > largest:
            raise UserError(
                f"views.{number}.size is {view.size} px, and no image has more than {largest} px on its shorter "
                f"side: lower it, such as --settings views.{number}.size={largest}"
            )


def note_on_views(recipe: Recipe, size: int, backbone: str, encoder: nn.Module) -> list[str]:
    """Notes on how an encoder sees the views, and on views that differ in size or in who sees them."""
    counts = Counter((view.size or size, view.target) for view in recipe.views)
    notes = [f"{backbone} sees one view at a time, so that each view has its own batch-norm statistics"]
    if not mixes_images(encoder):
        together = "all views" if len(counts) == 1 else "all views of one size"
        notes = [f"{backbone} sees {together} in one forward pass: it has no batch norm"]
    if len(counts) > 1:
        seen = {True: "seen by both branches", False: "by the online branch alone"}
        each = (f"{count} of {px} px ({seen[target]})" for (px, target), count in counts.items())
        notes.append(f"views: {', '.join(each)}")
    return notes


def note_on_accumulation(method: Method, model: DualBranch, work: Work) -> list[str]:
    """A note on what still sees a single batch where gradients are accumulated; empty if they are not."""
    if work.accumulate == 1:
        return []
    kinds = [kind for side in SIDES for kind, _ in method.maps(side)]
    looking = ["batch norm"] if mixes_images(model) else []
    looking += [kind.name for kind in kinds if not kind.per_image]
    looking += ["the centring"] if method.alignment == "centred_cosine" else []
    step = f"one step for every {work.accumulate} batches of {work.batch_size}"
    if not looking:
        return [f"{step}, which is one batch of {work.images_per_step} in every respect but the readings"]
    return [f"{step}; {', '.join(looking)} and the readings still see {work.batch_size} images at a time"]


def warnings(recipe: Recipe, method: Method, work: Work) -> list[str]:
    """Combinations known to fail, one sentence each with what to do; empty if there are none."""
    found, prototypes = [], recipe.prototypes
    if all(view.is_constant for view in recipe.views) and len(set(recipe.views)) == 1:
        found.append("all views of an image are the same, so nothing can be learned: widen their crops or jitter")
    for kind, argument in method.maps("target"):
        options = recipe.options("target", kind, argument)
        if isinstance(options, SinkhornOptions) and prototypes.count > (codes := work.batch_size + options.queue):
            found.append(
                f"{prototypes.count} prototypes, but batch and queue hold {codes} embeddings, so codes cannot be "
                f"balanced: set prototypes.count to {codes} or less, or lengthen target.{kind.name}.queue"
            )
    momentum = recipe.teacher.momentum
    memory = 1 / max(1 - momentum, 1e-9)
    if method.ema and memory > work.steps:
        found.append(
            f"EMA momentum {momentum:g} averages over {memory:,.0f} steps but the run has {work.steps}, "
            "so the teacher stays near its start: lower teacher.momentum"
        )
    if work.batch_size < 32:
        found.append(
            f"{work.batch_size} images per step bound the effective rank and make batch norm noisy: use 32 or more"
        )
    if method.assigns and prototypes.freeze_epochs >= work.epochs:
        found.append("the prototypes are frozen for the whole run: lower prototypes.freeze_epochs")
    if recipe.optimizer.freeze_encoder_epochs >= work.epochs or not recipe.optimizer.encoder_lr:
        name = "encoder_lr" if not recipe.optimizer.encoder_lr else "freeze_encoder_epochs"
        change = "raise" if name == "encoder_lr" else "lower"
        found.append(f"the encoder's weights are frozen for the whole run: {change} optimizer.{name}")
    if work.images % work.images_per_step == 1:
        found.append("the last batch of an epoch would hold 1 image, too few for batch norm: it is left out")
    return found


def adapt_views(recipe: Recipe, data: str, channels: int) -> tuple[Recipe, list[str]]:
    """The recipe with its views adapted to the images, and notes on what was changed.

    Args:
        recipe: the published one, for natural colour images.
        data: the data set; digits are not natural images.
        channels: channels of an image.
    """
    if data == "digits":
        views = tuple(replace(v, scale=(0.5, 1.0), flip=0.0, solarize_p=0.0, blur_p=0.0) for v in recipe.views)
        return replace(recipe, views=views), [
            "crops of half a digit or more, no flip, no solarisation: otherwise it may turn into another character"
        ]
    if channels not in (1, 3):
        views = tuple(
            replace(v, jitter=(*v.jitter[:2], 0.0, 0.0), grey_p=0.0, solarize_p=0.0) for v in recipe.views
        )
        return replace(recipe, views=views), [
            f"{channels} channels: views change brightness and contrast; saturation, hue, greyscale and "
            "solarisation are left out, because they are for colours"
        ]
    return recipe, []
