"""A plan: a configuration, resolved once. Code that takes a plan parses no text and loads no recipe."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from rankgap.data import ImageSet, load_data
from rankgap.data.encoded import BrokenImageError
from rankgap.data.splits import MissingDataError, Source
from rankgap.errors import UserError, missing
from rankgap.evaluate import check_sets
from rankgap.model.assembly import assemble
from rankgap.model.branches import DualBranch
from rankgap.model.encoder_options import Stem
from rankgap.model.methods import Method, design
from rankgap.run import presets
from rankgap.run.choice import choose
from rankgap.run.config import Autocast, TrainConfig
from rankgap.run.devices import check_processes, find_device, find_precision, find_workers
from rankgap.run.imports import import_all, located, saying_what_to_import
from rankgap.run.optimizer import parameter_groups
from rankgap.run.reader import plain, read
from rankgap.run.recipes import Recipe
from rankgap.run.saved import FORMAT, SavedData, SavedModel, SavedRun, checkout_commit, library_versions
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
        saved: an existing run, whose recipe, backbone, view size, channels, mean, standard deviation and levels
            are kept, whatever would be chosen now. Its data may have moved.
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
    choice = choose(config, method, device, saved=saved, own=given.encoder)
    _check_installed(config.loggers)
    # A saved run's images are read for the size that was asked for then, so that they are kept in the same way.
    train, tests = _image_sets(replace(config, channels=choice.channels), saved, given.images)
    if config.fast_dev_run:  # on any data: smaller batches where there are few images
        most = len(train) // (config.accumulate * config.devices) * config.devices
        config = replace(config, batch_size=max(min(config.batch_size, most), 2 * config.devices))
        tests = {name: images.sample(DRY_IMAGES) for name, images in tests.items()}
    if saved is None or config.resume:
        _check_enough(train, config)
    size = choice.view_size(train)
    torch.manual_seed(config.seed)
    start = choice.start(train, size)
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
    recipe, said = choice.recipe(train, size, work, encoder.network)
    model = assemble(
        method, encoder, recipe, features=encoder.features, views=len(recipe.views), targets=recipe.targets
    )
    parameter_groups(model, recipe.optimizer)  # a recipe that does not fit the encoder is said before training
    notes = [*start.notes, *said, *presets.note_on_views(recipe, size, choice.backbone, encoder)]
    notes += presets.note_on_accumulation(method, model, work)
    if config.fast_dev_run:
        notes.append(f"a dry run: two steps on {len(train)} images, then an evaluation; its numbers mean nothing")
    return Plan(
        config=config,
        method=method,
        recipe=recipe,
        work=work,
        model=model,
        backbone=choice.backbone,
        size=size,
        stem=start.stem,
        train=train,
        tests=tests,
        device=device,
        precision=find_precision(config.precision, device),
        workers=find_workers(config.workers, device, in_memory=train.in_memory),
        notes=tuple(notes),
        warnings=() if config.fast_dev_run else tuple(presets.warnings(recipe, method, work)),
        differences=() if saved is None else tuple(_differences(config, saved, train, tests)),
    )


def _check_enough(train: ImageSet, config: TrainConfig) -> None:
    """Reject a set that does not fill one step."""
    if len(train) >= config.batch_size * config.accumulate:
        return
    batches, flags = "a batch", "--batch-size"
    if config.accumulate > 1:
        batches, flags = f"{config.accumulate} batches", "--batch-size or --accumulate"
    raise UserError(
        f"{config.data} has {len(train)} training images, fewer than {batches} of {config.batch_size}: "
        f"lower {flags}"
    )


def _check_installed(loggers: Iterable[str]) -> None:
    for name in loggers:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise UserError(missing(name, f"--loggers {name}"))


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
    """Add its remedy to an error about data: a new location for an existing run, or skipping a broken image."""
    try:
        yield
    except MissingDataError as error:
        if saved is None:
            raise
        raise UserError(f"{error}; if the run's data have moved, pass their new location with {flags}") from error
    except BrokenImageError as error:
        if saved is not None:
            raise
        raise UserError(
            f"{error}; repair or remove it, or leave such images out with --on-bad-image skip"
        ) from error


def _saved_data(train: ImageSet, tests: Mapping[str, ImageSet]) -> SavedData | None:
    found = {name: images.fingerprint for name, images in tests.items() if images.fingerprint is not None}
    return None if train.fingerprint is None else SavedData(train=train.fingerprint, tests=found)


def _differences(
    config: TrainConfig, saved: SavedRun, train: ImageSet, tests: Mapping[str, ImageSet]
) -> Iterator[str]:
    """How the images differ from those that the run was started with, except in sets that --eval replaces."""
    then, now = saved.data, _saved_data(train, tests)
    if then is not None and now is not None:
        if told := then.train.difference(now.train):
            yield f"{config.data} does not hold the training images that the run was started with: {told}"
        for name in then.tests.keys() & now.tests.keys():
            place = config.eval.get(name)
            told = then.tests[name].difference(now.tests[name])
            if told and place == saved.run.eval.get(name):
                yield f"{place or config.data} does not hold the test images that the run was started with: {told}"
    if train.centre != saved.model.centre:  # other images, or a run from before photographs were cut
        how = "squashed" if train.centre == 1 else "cut out of the originals"
        yield f"views of {config.data} are {how} now, which they were not when the run was started"
