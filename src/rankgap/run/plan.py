"""An experiment: what a configuration leads to, and what a run folder holds of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

import rankgap
from rankgap.data import Batch, ImageSet, Inspection, inspect, load_data
from rankgap.errors import UserError
from rankgap.evaluate import check_sets, evaluate
from rankgap.model.backbones import build_encoder, check_backbone
from rankgap.model.branches import DualBranch
from rankgap.model.methods import Method, build, design
from rankgap.model.mlp import mixes_images
from rankgap.run import presets
from rankgap.run.config import TrainConfig, device, eval_sets, protocols
from rankgap.run.folder import RunFolder
from rankgap.run.presets import Work
from rankgap.run.recipes import Recipe, from_dict, load_recipe, override, to_dict
from rankgap.views.random_views import Views


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A configuration with everything it leads to, ready to train.

    Args:
        config: what was asked for.
        method: its row, filters included.
        recipe: what it is trained with.
        work: the size of the run.
        train: the training images.
        tests: evaluation sets by name; the data's own is `test`.
        size: side of a view in pixels.
        backbone: name of the encoder.
        notes: what was chosen and why, a sentence each.
        warnings: what is known to fail, likewise.
    """

    config: TrainConfig
    method: Method
    recipe: Recipe
    work: Work
    train: ImageSet
    tests: dict[str, ImageSet]
    size: int
    backbone: str
    notes: list[str]
    warnings: list[str]

    def model(self) -> DualBranch:
        """The model with its first weights, which the seed decides."""
        torch.manual_seed(self.config.seed)
        return build(
            self.method,
            backbone=self.backbone,
            heads=self.recipe.heads,
            channels=self.train.channels,
            size=self.size,
            views=len(self.recipe.views),
            scale=self.config.scale,
        )

    @property
    def workers(self) -> int:
        """Processes that decode files ahead: none for sets in memory, else one a core."""
        if self.config.workers is not None:
            return self.config.workers
        return 0 if self.train.in_memory else (os.cpu_count() or 1)

    def views(self) -> Views:
        """The recipe's views at this run's size."""
        return Views(self.recipe.views, self.size, self.train.mean, self.train.std)


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {} if config.lr is None else {"optimizer.lr": config.lr}
    for item in config.settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--settings takes KEY=VALUE, got {item!r}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--settings {item!r}: {value!r} is not YAML") from error
    return settings


def view_size(asked: int | None, images: ImageSet) -> int:
    """The side of a view: the one asked for, else the stored images' own up to 96 px, else at most 224."""
    return asked or (images.size if images.size <= 96 else min(images.size, 224))


def published_recipe(data: str, body: str, size: int, channels: int) -> tuple[Recipe, list[str]]:
    """The published recipe for images of a kind, its views made fit for them, and what was changed."""
    return presets.adapt_views(load_recipe("cifar" if size <= 96 else "imagenet100", body), data, channels)


def _eval_sets(config: TrainConfig, train: ImageSet, test: ImageSet | None) -> dict[str, ImageSet]:
    """The data's own test set and those of `--eval` (of which the test split, where they have one)."""
    tests = {} if test is None else {"test": test}
    for name, data in eval_sets(config.eval).items():
        first, second = load_data(data, size=config.size, channels=train.channels)
        tests[name] = second or first
    check_sets(train, tests)
    return tests


def prepare(config: TrainConfig) -> Experiment:
    """Read the data, choose the recipe, and say what was chosen.

    Raises:
        UserError: for each thing in the configuration that cannot be.
    """
    config.check()
    method = design(config.method, online=config.online, target=config.target)
    backbone = config.backbone or ("resnet_tiny" if device(config.accelerator).type == "cpu" else "resnet18")
    check_backbone(backbone)
    settings = _settings(config)
    override(load_recipe("cifar" if config.recipe == "auto" else config.recipe, method.body), settings)
    train, test = load_data(
        config.data, size=config.size, channels=config.channels, limit=config.limit, seed=config.seed
    )
    if len(train) < config.batch_size:
        raise UserError(
            f"{config.data} has {len(train)} training images, fewer than a batch of {config.batch_size}: "
            f"lower --batch-size"
        )
    size = view_size(config.size, train)
    encoder = build_encoder(backbone, channels=train.channels, size=size)
    work = Work(
        images=len(train),
        batch_size=config.batch_size,
        epochs=config.epochs,
        features=encoder.features,
        devices=config.devices,
    )
    notes: list[str] = []
    if config.recipe == "auto":
        recipe, notes = published_recipe(config.data, method.body, size, train.channels)
        if work.small:
            recipe, small_notes = presets.adapt(recipe, method, work)
            notes += small_notes
    else:
        recipe = load_recipe(config.recipe, method.body)
    recipe = override(recipe, settings)
    if mixes_images(encoder):
        notes.append(f"{backbone} sees one view at a time: batch norm's statistics are a view's own")
    else:
        notes.append(f"{backbone} sees all views in one forward: it has no batch norm")
    return Experiment(
        config=config,
        method=method,
        recipe=recipe,
        work=work,
        train=train,
        tests=_eval_sets(config, train, test),
        size=size,
        backbone=backbone,
        notes=notes,
        warnings=presets.warnings(recipe, method, work),
    )


def dry_run(config: TrainConfig, *, images: int = 24) -> tuple[Inspection, Batch, Tensor]:
    """Look at every image of a run's data, and draw views of some as its method would.

    Args:
        config: data, method, size, channels and seed are used.
        images: how many to draw views of.

    Returns:
        The inspection, B images, and their views (V, B, C, S, S) in [0, 1].

    Raises:
        UserError: an unknown method, no such data, or not one image that can be read.
    """
    config.check()
    method = design(config.method)
    found = inspect(config.data, size=config.size, channels=config.channels)
    size, train = view_size(config.size, found.images), found.images
    recipe, _ = published_recipe(config.data, method.body, size, train.channels)
    batch = found.sample(images, config.seed)
    # With mean 0 and deviation 1 the views stay in [0, 1], to be shown.
    views = Views(recipe.views, size, [0.0] * train.channels, [1.0] * train.channels)
    generator = torch.Generator().manual_seed(config.seed)
    return found, batch, views(batch.images, batch.sizes, generator)


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "datasets", "numpy")
    return {"rankgap": rankgap.__version__} | {name: importlib.metadata.version(name) for name in names}


def _commit() -> str | None:
    """The commit of rankgap's own checkout, where it runs from one."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
    )
    return found.stdout.strip() if found.returncode == tracked.returncode == 0 else None


def resolved(experiment: Experiment) -> dict[str, Any]:
    """What `config.yaml` holds: the configuration, the recipe it led to, and what it was made with."""
    run = dataclasses.asdict(experiment.config) | {"resume": False, "overwrite": False}
    return {
        "title": experiment.config.title,
        "run": run,
        "model": {
            "backbone": experiment.backbone,
            "channels": experiment.train.channels,
            "size": experiment.size,
            "mean": list(experiment.train.mean),
            "std": list(experiment.train.std),
        },
        "recipe": to_dict(experiment.recipe),
        "work": dataclasses.asdict(experiment.work),
        "notes": experiment.notes,
        "warnings": experiment.warnings,
        "versions": _versions(),
        "commit": _commit(),
    }


def load_weights(model: nn.Module, state: dict[str, Any], where: Path) -> None:
    """Load a model's weights.

    Raises:
        UserError: they are another model's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"{where} holds another model than {type(model).__name__} here: {lines[1][:200]}"
        ) from error


def evaluate_model(
    experiment: Experiment, model: DualBranch, *, branch: Literal["online", "target"] = "online"
) -> dict[str, Any]:
    """Score an encoder on the run's evaluation sets."""
    config = experiment.config
    return evaluate(
        model.encoder(branch),
        experiment.train,
        experiment.tests,
        size=experiment.size,
        protocol=protocols(config.protocol),
        branch=branch,
        device=device(config.accelerator),
        workers=experiment.workers,
        seed=config.seed,
    )


def reopen(config: TrainConfig) -> Experiment:
    """The experiment of a run that exists, with the recipe it was started with, whatever presets say now.

    Args:
        config: the run's, in its folder.
    """
    path = config.folder.path
    recipe = from_dict(config.folder.config()["recipe"], f"{path}/config.yaml")
    return dataclasses.replace(prepare(config), recipe=recipe)


def restore(path: str | Path, checkpoint: Path | None = None, **changes: Any) -> tuple[Experiment, DualBranch]:
    """An experiment and its trained model, from a run folder.

    Args:
        path: the run folder.
        checkpoint: its file; the last one by default.
        changes: fields of the configuration to replace.

    Raises:
        UserError: no run, no checkpoint, or a checkpoint of another model.
    """
    folder = RunFolder(Path(path))
    run = folder.config()["run"] | {"out": str(path)} | changes
    state = folder.load_checkpoint(checkpoint)
    experiment = reopen(TrainConfig.from_dict(run, f"{path}/config.yaml"))
    model = experiment.model()
    load_weights(model, state["model"], checkpoint or folder.checkpoint)
    return experiment, model
