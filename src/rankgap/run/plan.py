"""A plan: all that a configuration leads to, resolved once. Nothing behind it parses text or loads a recipe."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rankgap.data import ImageSet, load_data
from rankgap.errors import UserError, unknown
from rankgap.evaluate import check_sets
from rankgap.model.assembly import assemble
from rankgap.model.backbones import build_encoder, check_backbone
from rankgap.model.branches import DualBranch
from rankgap.model.methods import Method, design
from rankgap.model.mlp import mixes_images
from rankgap.run import presets
from rankgap.run.config import Autocast, Precision, TrainConfig
from rankgap.run.reader import plain, read
from rankgap.run.recipes import SIDES, Recipe, load_recipe, override
from rankgap.run.saved import FORMAT, SavedModel, SavedRun, checkout_commit, library_versions
from rankgap.run.work import Work
from rankgap.views.random_views import Views


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """A configuration with everything it leads to, ready to train.

    Args:
        config: what was asked for.
        method: its row, filters included.
        recipe: what it is trained with, the options of its own maps included.
        work: the size of the run.
        model: with its first weights, which the seed decides.
        backbone: name of the encoder.
        size: side of a view in pixels.
        train: the training images.
        tests: evaluation sets by name; the data's own is `test`.
        device: where it computes.
        precision: of the autocast.
        workers: processes that decode files ahead.
        notes: what was chosen and why, a sentence each.
        warnings: what is known to fail, a sentence each.
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

    def views(self) -> Views:
        """The recipe's views at this run's size."""
        return Views(self.recipe.views, self.size, self.train.mean, self.train.std)

    def saved(self) -> SavedRun:
        """What `config.yaml` keeps of it."""
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
            ),
            recipe=self.recipe,
            work=self.work,
            notes=self.notes,
            warnings=self.warnings,
            versions=library_versions(),
            commit=checkout_commit(),
        )


def resolve(config: TrainConfig, *, recipe: Recipe | None = None) -> Plan:
    """Check every choice, read the data, choose the recipe, build the model, and say what was chosen.

    Args:
        config: what is asked for.
        recipe: that of a run that exists, in place of what presets would choose today.

    Raises:
        UserError: something in the configuration cannot be done; where the data do not matter, before they are
            read.
    """
    config = read(TrainConfig, plain(config), "the configuration")  # one made in Python may hold anything
    method = design(config.method, online=config.online, target=config.target)
    device = find_device(config.accelerator)
    backbone = config.backbone or ("resnet_tiny" if device.type == "cpu" else "resnet18")
    check_backbone(backbone)
    _check_installed(config.loggers)
    published = load_recipe("cifar" if config.recipe == "auto" else config.recipe, method.body)
    settings = recipe_settings(config, method)
    override(published, settings)
    train, test = load_data(
        config.data,
        size=config.size,
        channels=config.channels,
        limit=config.limit,
        seed=config.seed,
        on_bad_image=config.on_bad_image,
    )
    if len(train) < config.batch_size:
        raise UserError(
            f"{config.data} has {len(train)} training images, fewer than a batch of {config.batch_size}: "
            f"lower --batch-size"
        )
    tests = _eval_sets(config, train, test)
    size = view_size(config.size, train)
    torch.manual_seed(config.seed)
    encoder = build_encoder(backbone, channels=train.channels, size=size)
    work = Work(
        images=len(train),
        batch_size=config.batch_size,
        epochs=config.epochs,
        features=encoder.features,
        devices=config.devices,
    )
    notes: list[str] = []
    if recipe is None:
        recipe = published
        if config.recipe == "auto":
            recipe, notes = published_recipe(config.data, method.body, size, train.channels)
            if work.small:
                recipe, small_notes = presets.adapt(recipe, method, work)
                notes += small_notes
        recipe = override(recipe, settings).used_by(method)
    if mixes_images(encoder):
        notes.append(f"{backbone} sees one view at a time: batch norm's statistics are a view's own")
    else:
        notes.append(f"{backbone} sees all views in one forward: it has no batch norm")
    return Plan(
        config=config,
        method=method,
        recipe=recipe,
        work=work,
        model=assemble(method, encoder, recipe, features=encoder.features, views=len(recipe.views)),
        backbone=backbone,
        size=size,
        train=train,
        tests=tests,
        device=device,
        precision=find_precision(config.precision, device),
        workers=_workers(config, train),
        notes=tuple(notes),
        warnings=tuple(presets.warnings(recipe, method, work)),
    )


def recipe_settings(config: TrainConfig, method: Method) -> dict[str, Any]:
    """What the user puts in place of the recipe's values, by dotted key: --lr, --scale and --settings.

    Raises:
        UserError: an option of a map that the method does not have.
    """
    settings: dict[str, Any] = {} if config.lr is None else {"optimizer.lr": config.lr}
    has = {side: {kind.name: kind for kind, _ in method.maps(side)} for side in SIDES}
    if config.scale is not None:
        scaled = [
            f"{side}.{name}" for side in SIDES for name, k in has[side].items() if hasattr(k.options, "scale")
        ]
        settings |= {f"{place}.scale": config.scale for place in scaled}
    for key in config.settings:
        side, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if side in has and name not in has[side]:
            raise unknown(f"map in --settings {key}: on the {side} branch of {config.title}", name, has[side])
    return settings | dict(config.settings)


def published_recipe(data: str, body: str, size: int, channels: int) -> tuple[Recipe, list[str]]:
    """The published recipe for images of a kind, its views made fit for them, and what was changed."""
    return presets.adapt_views(load_recipe("cifar" if size <= 96 else "imagenet100", body), data, channels)


def view_size(asked: int | None, images: ImageSet) -> int:
    """The side of a view: the one asked for, else the stored images' own up to 96 px, else at most 224."""
    return asked or (images.size if images.size <= 96 else min(images.size, 224))


def find_device(accelerator: str) -> torch.device:
    """Where a run computes.

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
        raise UserError(f"--accelerator {accelerator}: torch finds none here; leave it out, or take cpu")
    return torch.device(found)


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
            raise UserError(f"--loggers {name}: it is not installed here (pip install {name})")


def _eval_sets(config: TrainConfig, train: ImageSet, test: ImageSet | None) -> dict[str, ImageSet]:
    """The data's own test set and those of `--eval` (of which the test split, where they have one)."""
    tests = {} if test is None else {"test": test}
    for name, data in config.eval.items():
        first, second = load_data(
            data, size=config.size, channels=train.channels, on_bad_image=config.on_bad_image
        )
        tests[name] = second or first
    check_sets(train, tests)
    return tests


def _workers(config: TrainConfig, train: ImageSet) -> int:
    """Processes that decode files ahead: none for sets in memory, else one a core."""
    if config.workers is not None:
        return config.workers
    return 0 if train.in_memory else (os.cpu_count() or 1)
