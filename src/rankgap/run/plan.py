"""A plan: a configuration, resolved once. Code that takes a plan parses no text and loads no recipe."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankgap.data import ImageSet, load_data
from rankgap.data.splits import MissingDataError, Source
from rankgap.errors import UserError, unknown
from rankgap.evaluate import check_sets
from rankgap.filters.learned import LearnedOptions
from rankgap.filters.spectral import FilterOptions
from rankgap.model.assembly import assemble
from rankgap.model.backbones import build_encoder, check_backbone, own_name
from rankgap.model.branches import DualBranch
from rankgap.model.methods import Method, design
from rankgap.model.mlp import mixes_images
from rankgap.run import presets
from rankgap.run.config import Autocast, Precision, TrainConfig
from rankgap.run.imports import import_all, located, saying_what_to_import
from rankgap.run.reader import plain, read
from rankgap.run.recipes import SIDES, Recipe, load_recipe, override
from rankgap.run.saved import FORMAT, SavedData, SavedModel, SavedRun, checkout_commit, library_versions
from rankgap.run.work import Work
from rankgap.views import Views

MOST_WORKERS = 1024  # processes


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
    _check_processes(config, device)
    if device.type == "cpu" and config.devices == 1:  # with several processes, Lightning divides the cores
        config = replace(config, threads=config.threads or torch.get_num_threads())
    backbone = config.backbone or ("resnet_tiny" if device.type == "cpu" else "resnet18")
    asked = config
    if saved is not None:
        backbone = saved.model.backbone
        asked = replace(config, size=saved.model.size, channels=saved.model.channels)
    if given.encoder is None:
        check_backbone(backbone)
    else:
        backbone = own_name(given.encoder)
    _check_installed(config.loggers)
    settings = recipe_settings(config, method)
    if saved is None:
        published = load_recipe("cifar" if config.recipe == "auto" else config.recipe, method.body)
        override(published, settings).used_by(method)
        _check_used(config, method)
    train, tests = _image_sets(asked, saved, given.images)
    if len(train) < config.batch_size * config.accumulate and (saved is None or config.resume):
        batches, flags = "a batch", "--batch-size"
        if config.accumulate > 1:
            batches, flags = f"{config.accumulate} batches", "--batch-size or --accumulate"
        raise UserError(
            f"{config.data} has {len(train)} training images, fewer than {batches} of {config.batch_size}: "
            f"lower {flags}"
        )
    size = view_size(asked.size, train)
    torch.manual_seed(config.seed)
    encoder = build_encoder(given.encoder or backbone, channels=train.channels, size=size)
    work = Work(
        images=len(train),
        batch_size=config.batch_size,
        epochs=config.epochs,
        features=encoder.features,
        devices=config.devices,
        accumulate=config.accumulate,
    )
    notes: list[str] = []
    recipe = published.sized(size) if saved is None else saved.recipe
    if saved is None:
        if config.recipe == "auto":
            recipe, notes = published_recipe(config.data, method.body, size, train.channels)
            if work.small:
                recipe, small_notes = presets.adapt(recipe, method, work)
                notes += small_notes
        recipe = override(recipe, settings).used_by(method)
        presets.check_view_sizes(recipe, max(train.side, asked.size or 0))
    if mixes_images(encoder):
        notes.append(f"{backbone} sees one view at a time, so that each view has its own batch-norm statistics")
    else:
        notes.append(f"{backbone} sees all views of one size in one forward pass: it has no batch norm")
    model = assemble(
        method, encoder, recipe, features=encoder.features, views=len(recipe.views), targets=recipe.targets
    )
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
        train=train,
        tests=tests,
        device=device,
        precision=find_precision(config.precision, device),
        workers=_workers(config, train),
        notes=tuple(notes),
        warnings=tuple(presets.warnings(recipe, method, work)),
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


def published_recipe(data: str, body: str, size: int, channels: int) -> tuple[Recipe, list[str]]:
    """The published recipe with views adapted to the images, and notes on what was changed."""
    recipe = load_recipe("cifar" if size <= 96 else "imagenet100", body).sized(size)
    return presets.adapt_views(recipe, data, channels)


def view_size(asked: int | None, images: ImageSet) -> int:
    """The side of a view: the given one, or the stored images' own up to 96 px and otherwise at most 224."""
    return asked or (images.size if images.size <= 96 else min(images.size, 224))


def find_device(accelerator: str) -> torch.device:
    """The device that a run computes on.

    Args:
        accelerator: auto, cpu, gpu, cuda or mps.

    Raises:
        UserError: an unknown accelerator, or one that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted: dict[str, Iterable[str]] = {"auto": available, "gpu": ("cuda", "mps")}
    wanted |= {name: (name,) for name in available}
    if accelerator not in wanted:
        raise unknown("accelerator", accelerator, wanted)
    found = next((name for name in wanted[accelerator] if available[name]), None)
    if found is None:
        raise UserError(f"--accelerator {accelerator}: torch finds none on this machine; leave it out, or use cpu")
    return torch.device(found)


def _check_processes(config: TrainConfig, device: torch.device) -> None:
    """Reject more processes than the machine can use, before they are started."""
    have = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, max(os.cpu_count() or 1, 2))
    if config.devices > have:
        raise UserError(f"--devices must be at most {have} with --accelerator {device.type}, got {config.devices}")
    if config.workers is not None and config.workers > MOST_WORKERS:
        raise UserError(f"--workers must be at most {MOST_WORKERS}, got {config.workers}")


def find_precision(precision: Precision, device: torch.device) -> Autocast:
    """The precision that "auto" stands for on a device."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "32-true"


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


def _workers(config: TrainConfig, train: ImageSet) -> int:
    """Processes that decode files ahead: none for sets in memory, else one per core."""
    if config.workers is not None:
        return config.workers
    return 0 if train.in_memory else (os.cpu_count() or 1)
