"""A plan: a configuration, resolved once. Code that takes a plan parses no text and loads no recipe."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankgap.data import ImageSet, load_data
from rankgap.data.splits import MissingDataError, Source
from rankgap.errors import UserError
from rankgap.evaluate import check_sets
from rankgap.filters.learned import LearnedOptions
from rankgap.filters.spectral import FilterOptions
from rankgap.model.assembly import assemble
from rankgap.model.backbones import build_encoder, check_backbone, own_name, patch_size
from rankgap.model.branches import DualBranch
from rankgap.model.encoder_options import Stem, fitting_size
from rankgap.model.methods import Method, design
from rankgap.model.mlp import mixes_images
from rankgap.run import continuing, presets
from rankgap.run.config import Autocast, TrainConfig
from rankgap.run.devices import check_processes, find_device, find_precision, find_workers
from rankgap.run.imports import import_all, located, saying_what_to_import
from rankgap.run.optimizer import parameter_groups
from rankgap.run.reader import plain, read
from rankgap.run.recipes import SIDES, Recipe, load_recipe, override, recipe_for
from rankgap.run.saved import FORMAT, SavedData, SavedModel, SavedRun, checkout_commit, library_versions
from rankgap.run.start import Start, choose_backbone, start_from
from rankgap.run.work import Work
from rankgap.views import Views

DRY_IMAGES = 64  # of an evaluation set in a dry run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """A resolved configuration, ready to train.

    Args:
        config: the configuration it was resolved from.
        method: the method's row, including filters.
        recipe: the recipe, including the options of the method's maps.
        work: the size of the run.
        model: the model, with initial weights drawn from the seed.
        backbone: name of the encoder.
        size: side of a view in pixels.
        stem: the encoder's stem.
        train: the training images.
        tests: evaluation sets by name; the data's own is `test`.
        device: the device to compute on.
        precision: precision of the autocast.
        workers: processes that decode files ahead.
        notes: what was chosen and why, one sentence each.
        warnings: choices known to fail, one sentence each.
        differences: how the images differ from those that the run was started with, one sentence each.
    """

    config: TrainConfig
    method: Method
    recipe: Recipe
    work: Work
    model: DualBranch
    backbone: str
    size: int
    stem: Stem
    train: ImageSet
    tests: Mapping[str, ImageSet]
    device: torch.device
    precision: Autocast
    workers: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    differences: tuple[str, ...] = ()

    def views(self) -> Views:
        """The recipe's views at this run's size."""
        return Views(self.recipe.views, self.size, self.train.mean, self.train.std)

    def target_views(self) -> Views:
        """Those views that both branches see."""
        seen = self.recipe.views[: self.recipe.targets]
        return Views(seen, self.size, self.train.mean, self.train.std)

    def saved(self) -> SavedRun:
        """The part that `config.yaml` keeps."""
        return SavedRun(
            format=FORMAT,
            title=self.config.title,
            run=self.config.begun(),
            model=SavedModel(
                backbone=self.backbone,
                channels=self.train.channels,
                size=self.size,
                mean=self.train.mean,
                std=self.train.std,
                levels=self.train.levels,
                stem=self.stem,
                centre=self.train.centre,
            ),
            recipe=self.recipe,
            work=self.work,
            data=_saved_data(self.train, self.tests),
            notes=self.notes,
            warnings=self.warnings,
            versions=library_versions(),
            commit=checkout_commit(),
        )

    def resumed(self, saved: SavedRun) -> SavedRun:
        """The new `config.yaml` of a resumed run, whose flags and images may have changed."""
        data = _saved_data(self.train, self.tests)
        return replace(saved, run=self.config.begun(), work=self.work, data=data)


@dataclass(frozen=True, slots=True)
class Given:
    """Images and an encoder passed from Python, in place of those that a configuration names.

    Args:
        images: a data set that is already open; None for the configuration's.
        encoder: a module (B, C, H, W) -> (B, F), trained from its current weights; None for a named backbone.
    """

    images: Source | None = None
    encoder: nn.Module | None = None


def resolve(config: TrainConfig, *, saved: SavedRun | None = None, given: Given | None = None) -> Plan:
    """Check every choice, read the data, choose the recipe, build the model, and say what was chosen.

    Args:
        config: the configuration to resolve.
        saved: an existing run, whose recipe, backbone, view size, channels, mean and standard deviation are kept,
            whatever would be chosen now. Its data may have moved.
        given: images and an encoder in place of those that the configuration names.

    Raises:
        UserError: the configuration cannot be carried out, or the data are missing. Checks that do not need the
            data come before the data are read.
    """
    config = read(TrainConfig, plain(config), "the configuration")  # one made in Python is not checked yet
    if saved is None:
        import_all(config.imports)
    config = replace(config, imports=tuple(map(located, config.imports)))  # absolute: found from any folder later
    given = given or Given()
    with saying_what_to_import(config.imports):
        method = design(config.method, online=config.online, target=config.target)
    device = find_device(config.accelerator)
    check_processes(config, device)
    if device.type == "cpu" and config.devices == 1:  # with several processes, Lightning divides the cores
        config = replace(config, threads=config.threads or torch.get_num_threads())
    if config.fast_dev_run:  # two epochs of one step
        config = replace(config, limit=config.batch_size * config.accumulate, epochs=2)
    asked = config
    if saved is not None:
        asked = replace(config, size=saved.model.size, channels=saved.model.channels)
    settings = recipe_settings(config, method)
    patch, weights = 1, None  # the sizes of a saved run fit its encoder, and its checkpoint has its weights
    if saved is None:
        published = _published(config, method.body, config.size)
        wanted = override(published, settings).used_by(method)
        _check_used(config, method)
        backbone, weights = choose_backbone(config, wanted, device, given.encoder)
        patch = patch_size(given.encoder or backbone)
        if config.size is not None:
            _check_size(config.size, patch, backbone)
            if given.encoder is None:  # here already, before the data are read
                recipe = override(published.sized(config.size, patch), settings)
                build_encoder(backbone, **_takes(recipe, channels=config.channels or 3, size=config.size))
    else:
        backbone = saved.model.backbone if given.encoder is None else own_name(given.encoder)
        check_backbone(backbone)
    _check_installed(config.loggers)
    train, tests = _image_sets(asked, saved, given.images)
    if len(train) < config.batch_size * config.accumulate and (saved is None or config.resume):
        batches, flags = "a batch", "--batch-size"
        if config.accumulate > 1:
            batches, flags = f"{config.accumulate} batches", "--batch-size or --accumulate"
        raise UserError(
            f"{config.data} has {len(train)} training images, fewer than {batches} of {config.batch_size}: "
            f"lower {flags}"
        )
    notes: list[str] = []
    if config.fast_dev_run:
        tests = {name: images.sample(DRY_IMAGES) for name, images in tests.items()}
        notes.append(f"a dry run: two steps on {len(train)} images, then an evaluation; its numbers mean nothing")
    own_size = view_size(asked.size, train)
    size = fitting_size(own_size, patch)
    if saved is None:
        published = _published(config, method.body, size)
        recipe = override(published.sized(size, patch), settings).used_by(method)
        unfit = (own_size, *override(published.sized(size), settings).sizes(size))
        notes += _note_on_patches(backbone, patch, unfit, (size, *recipe.sizes(size)))
    else:
        recipe = saved.recipe
    torch.manual_seed(config.seed)
    takes = _takes(recipe, channels=train.channels, size=size)
    if weights is not None:
        start = start_from(weights, backbone, partial=config.init_partial, **takes)
    else:
        stem: Stem = "auto" if saved is None else saved.model.stem
        start = Start(encoder=build_encoder(given.encoder or backbone, stem=stem, **takes), stem=stem)
    if start.moments is not None:
        for images in (train, *tests.values()):
            images.mean, images.std = start.moments
    encoder = start.encoder
    if config.grad_checkpointing:
        encoder.checkpoint_gradients()
    work = Work(
        images=len(train),
        batch_size=config.batch_size,
        epochs=config.epochs,
        features=encoder.features,
        devices=config.devices,
        accumulate=config.accumulate,
    )
    if saved is None and config.recipe == "auto":
        recipe, said = presets.adapt_views(published.sized(size, patch), config.data, train.channels)
        notes += said
        if work.small and not config.fast_dev_run:
            recipe, said = presets.adapt(recipe, method, work)
            notes += said
        if weights is not None and not config.fast_dev_run:
            recipe, said = continuing.adapt(recipe, method, work, encoder.network)
            notes += said
        recipe = override(recipe, settings).used_by(method)
    presets.check_view_sizes(recipe, max(train.side, asked.size or 0))
    if mixes_images(encoder):
        notes.append(f"{backbone} sees one view at a time, so that each view has its own batch-norm statistics")
    else:
        notes.append(f"{backbone} sees all views of one size in one forward pass: it has no batch norm")
    model = assemble(
        method, encoder, recipe, features=encoder.features, views=len(recipe.views), targets=recipe.targets
    )
    parameter_groups(model, recipe.optimizer)  # a recipe that does not fit the encoder is said before training
    notes += presets.note_on_views(recipe, size)
    notes += presets.note_on_accumulation(method, model, work)
    return Plan(
        config=config,
        method=method,
        recipe=recipe,
        work=work,
        model=model,
        backbone=backbone,
        size=size,
        stem=start.stem,
        train=train,
        tests=tests,
        device=device,
        precision=find_precision(config.precision, device),
        workers=find_workers(config, train),
        notes=(*start.notes, *notes),
        warnings=() if config.fast_dev_run else tuple(presets.warnings(recipe, method, work)),
        differences=() if saved is None else tuple(_differences(config, saved, train, tests)),
    )


def recipe_settings(config: TrainConfig, method: Method) -> dict[str, Any]:
    """The user's values in place of the recipe's, by dotted key, from --lr, --scale and --settings.

    Raises:
        UserError: an option of a map that the method does not have.
    """
    settings: dict[str, Any] = {} if config.lr is None else {"optimizer.lr": config.lr}
    has = {side: {kind.name: kind for kind, _ in method.maps(side)} for side in SIDES}
    if config.scale is not None:
        scaled = [
            f"{side}.{name}"
            for side in SIDES
            for name, kind in has[side].items()
            if isinstance(kind.options, FilterOptions | LearnedOptions)
        ]
        settings |= {f"{place}.scale": config.scale for place in scaled}
    for key in config.settings:
        side, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if side in has and name not in has[side]:
            there = ", ".join(has[side]) or "no map"
            raise UserError(f"--settings {key}: the {side} branch of {config.title} has {there}, not {name!r}")
    return settings | dict(config.settings)


def _check_used(config: TrainConfig, method: Method) -> None:
    """Reject settings of parts that the method does not have, which would have no effect."""
    parts = {"prototypes": ("prototypes", method.assigns), "teacher": ("EMA teacher", method.ema)}
    for key in config.settings:
        name, has = parts.get(key.partition(".")[0], ("", True))
        if not has:
            raise UserError(f"--settings {key}: {config.title} has no {name}; leave it out")


def _published(config: TrainConfig, body: str, size: int | None) -> Recipe:
    """The recipe that a configuration names; auto chooses by the views' size, None if it is not known yet."""
    return load_recipe(recipe_for(body, size) if config.recipe == "auto" else config.recipe, body)


def _takes(recipe: Recipe, *, channels: int, size: int) -> dict[str, Any]:
    """The options of `build_encoder` that follow from a recipe and its images."""
    sizes, dropped = recipe.sizes(size), recipe.encoder.drop_path
    return {"channels": channels, "size": size, "sizes": sizes, "drop_path": dropped}


def _check_size(size: int, patch: int, backbone: str) -> None:
    if size % patch:
        near = sorted({fitting_size(size - size % patch, patch), size - size % patch + patch})
        raise UserError(
            f"--size {size}: {backbone} takes multiples of its patch of {patch} px: "
            f"choose {' or '.join(map(str, near))}"
        )


def _note_on_patches(backbone: str, patch: int, wanted: Sequence[int], made: Sequence[int]) -> list[str]:
    """A note on views that have another size because it must be a multiple of a patch; empty if there are none."""
    changed = {then: now for then, now in zip(wanted, made, strict=True) if then != now}
    if not changed:
        return []
    said = ", ".join(f"{now} px instead of {then}" for then, now in changed.items())
    return [f"views of {said}: {backbone} takes multiples of its patch of {patch} px"]


def view_size(asked: int | None, images: ImageSet) -> int:
    """The side of a view: the given one, or the stored images' own up to 96 px and otherwise at most 224."""
    return asked or (images.size if images.size <= 96 else min(images.size, 224))


def _check_installed(loggers: Iterable[str]) -> None:
    for name in loggers:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise UserError(f"--loggers {name}: the package is not installed (pip install {name})")


def _image_sets(
    config: TrainConfig, saved: SavedRun | None, given: Source | None
) -> tuple[ImageSet, dict[str, ImageSet]]:
    """The training set; and by name the data's own test set and those of `--eval` (their test splits, if any)."""
    size, skips = config.size, config.on_bad_image
    with _remedy("--data NEW", saved):
        train, test = load_data(
            given or config.data,
            size=size,
            channels=config.channels,
            limit=config.limit,
            seed=config.seed,
            on_bad_image=skips,
            statistics=None if saved is None else saved.model.statistics,
        )
    tests = {} if test is None else {"test": test}
    for name, data in config.eval.items():
        with _remedy(f"--eval {name}=NEW", saved):
            first, second = load_data(
                data, size=size, channels=train.channels, on_bad_image=skips, statistics=train.statistics
            )
        tests[name] = second or first
    check_sets(train, tests)
    return train, tests


@contextmanager
def _remedy(flags: str, saved: SavedRun | None) -> Iterator[None]:
    """Add to an error about missing data of an existing run which flag takes their new location."""
    try:
        yield
    except MissingDataError as error:
        if saved is None:
            raise
        raise UserError(f"{error}; if the run's data have moved, pass their new location with {flags}") from error


def _saved_data(train: ImageSet, tests: Mapping[str, ImageSet]) -> SavedData | None:
    found = {name: images.fingerprint for name, images in tests.items() if images.fingerprint is not None}
    return None if train.fingerprint is None else SavedData(train=train.fingerprint, tests=found)


def _differences(
    config: TrainConfig, saved: SavedRun, train: ImageSet, tests: Mapping[str, ImageSet]
) -> Iterator[str]:
    """How the images differ from those that the run was started with, except in sets that --eval replaces."""
    then, now = saved.data, _saved_data(train, tests)
    if then is None or now is None:
        return
    if told := then.train.difference(now.train):
        yield f"{config.data} does not hold the training images that the run was started with: {told}"
    for name in then.tests.keys() & now.tests.keys():
        place = config.eval.get(name)
        told = then.tests[name].difference(now.tests[name])
        if told and place == saved.run.eval.get(name):
            yield f"{place or config.data} does not hold the test images that the run was started with: {told}"
