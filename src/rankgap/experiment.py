"""One experiment: from a configuration to a run folder, and from a run folder to its numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import re
import signal
import subprocess
import threading
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import rankgap
from rankgap import presets
from rankgap.backbones import build_encoder
from rankgap.branches import DualBranch
from rankgap.data import ImageSet, load_data
from rankgap.errors import NonFiniteError, UserError
from rankgap.evaluate import evaluate
from rankgap.methods import Method, build, design, title
from rankgap.presets import Work
from rankgap.recipes import Recipe, from_dict, load_recipe, override, to_dict
from rankgap.runs import MetricsFile, RunFolder
from rankgap.training import SelfSupervised, TrainingData
from rankgap.views import Views

Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true"]


class InterruptedRunError(Exception):
    """Training was interrupted, and can go on."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """What to train, on what, and where to put it.

    Args:
        method: a row of the zoo (`rankgap methods` lists them).
        online: replaces the online map: identity, predictor, or the gain of a low-pass filter (power:0.5, log1p).
        target: replaces the target map: identity, or the gain of a high-pass filter (power:-0.5). A target filter
            alone also removes the predictor; --online predictor keeps it.
        scale: what a gain acts on: rms is s / sqrt(batch size), raw is s (as the paper's authors wrote it).
        data: training images: digits, cifar10, cifar100, folder:DIR (any nested folder of images, labels not
            needed), or hf:NAME_OR_DIR (a Hub name, or a folder of Parquet).
        eval: further test sets, as NAME=DATA.
        limit: train on the first N images of a seeded shuffle.
        size: side of a view in pixels; by default the images' own side up to 96, else 224.
        channels: convert all images to this many channels (1 or 3); by default they must agree.
        backbone: resnet_tiny, or any timm name; by default resnet_tiny on a CPU and resnet18 elsewhere.
        epochs: passes over the images.
        batch_size: images a step, over all devices.
        recipe: auto (the method's published recipe, adapted where the work is small), cifar or imagenet100 (as
            published), or a path of a YAML file.
        lr: peak learning rate for a batch of 256, in place of the recipe's.
        settings: further values in place of the recipe's, as KEY=VALUE (heads.prototypes=512).
        rank_every: steps between two readings of the ranks.
        protocol: evaluation at the end: knn, linear, linear_sgd, joined by commas; none for no evaluation.
        seed: of weights, order of images and views; the same seed gives the same numbers on a CPU.
        precision: auto is bf16-mixed where the device has bf16, else 16-mixed on a GPU and 32-true on a CPU.
        accelerator: auto, cpu, gpu, mps: as Lightning names them.
        devices: how many devices; they share each batch.
        workers: processes that decode files ahead; by default 0 for sets in memory, else one a core.
        out: the run folder; by default runs/ and a name made of method, filters, data and seed.
        resume: go on from the run folder's last checkpoint.
        overwrite: replace a run folder that exists.
    """

    method: str = "simsiam"
    online: str | None = None
    target: str | None = None
    scale: Literal["rms", "raw"] = "rms"
    data: str = "digits"
    eval: list[str] = field(default_factory=list)
    limit: int | None = None
    size: int | None = None
    channels: int | None = None
    backbone: str | None = None
    epochs: int = 100
    batch_size: int = 256
    recipe: str = "auto"
    lr: float | None = None
    settings: list[str] = field(default_factory=list)
    rank_every: int = 10
    protocol: str = "knn,linear"
    seed: int = 0
    precision: Precision = "auto"
    accelerator: str = "auto"
    devices: int = 1
    workers: int | None = None
    out: str | None = None
    resume: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: a number below its least value, or an unknown protocol.
        """
        for name, least in (("epochs", 1), ("batch_size", 2), ("rank_every", 1), ("devices", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("limit", "size"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise UserError(f"--{name} must be at least 2, got {value}")
        if self.batch_size % self.devices:
            raise UserError(f"--batch_size {self.batch_size} does not divide among {self.devices} devices")
        protocols(self.protocol)
        eval_sets(self.eval)

    @property
    def title(self) -> str:
        """What the run is called in tables."""
        return title(self.method, online=self.online, target=self.target)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        if self.out is not None:
            return RunFolder(Path(self.out))
        words = f"{self.title}-{self.data.removeprefix('folder:').removeprefix('hf:').rstrip('/')}-seed{self.seed}"
        return RunFolder(Path("runs") / re.sub(r"[^\w.+-]+", "_", Path(words).name.replace(":", "")))


def protocols(text: str) -> tuple[str, ...]:
    """The evaluations that a comma-separated list names; none for "none"."""
    names = tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))
    for name in names:
        if name not in ("knn", "linear", "linear_sgd"):
            raise UserError(f"unknown protocol {name!r}: there are knn, linear, linear_sgd, none")
    return names


def eval_sets(items: Sequence[str]) -> dict[str, str]:
    """Names and data of NAME=DATA items."""
    sets: dict[str, str] = {}
    for item in items:
        name, equals, data = item.partition("=")
        if not (name and equals and data):
            raise UserError(f"--eval takes NAME=DATA, got {item!r}")
        sets[name] = data
    return sets


@dataclass(frozen=True, slots=True)
class Experiment:
    """A configuration with everything it leads to, ready to train."""

    config: TrainConfig
    method: Method
    recipe: Recipe
    work: Work
    train: ImageSet
    test: ImageSet | None
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

    def views(self) -> Views:
        """The recipe's views at this run's size."""
        return Views(self.recipe.views, self.size, self.train.mean, self.train.std)


def uses_cpu(accelerator: str) -> bool:
    """Whether Lightning would train on a CPU."""
    if accelerator != "auto":
        return accelerator == "cpu"
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def resolve_precision(precision: Precision, accelerator: str) -> Precision:
    """The precision that "auto" stands for on a device."""
    if precision != "auto":
        return precision
    if uses_cpu(accelerator):
        return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "32-true"


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {} if config.lr is None else {"optimizer.lr": config.lr}
    for item in config.settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--settings takes KEY=VALUE, got {item!r}")
        settings[key] = yaml.safe_load(value)
    return settings


def prepare(config: TrainConfig) -> Experiment:
    """Read the data, choose the recipe, and say what was chosen.

    Raises:
        UserError: for each thing in the configuration that cannot be.
    """
    config.check()
    method = design(config.method, online=config.online, target=config.target)
    backbone = config.backbone or ("resnet_tiny" if uses_cpu(config.accelerator) else "resnet18")
    if config.recipe != "auto":
        load_recipe(config.recipe, method.body)
    train, test = load_data(
        config.data, size=config.size, channels=config.channels, limit=config.limit, seed=config.seed
    )
    size = config.size or (train.size if train.size <= 96 else 224)
    if len(train) < config.batch_size:
        raise UserError(
            f"{config.data} has {len(train)} training images, fewer than a batch of {config.batch_size}: "
            f"lower --batch_size"
        )
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
        recipe = load_recipe("cifar" if size <= 96 else "imagenet100", method.body)
        if work.small:
            recipe, notes = presets.adapt(recipe, method, work)
        recipe, view_notes = presets.adapt_views(recipe, config.data, train.channels)
        notes += view_notes
    else:
        recipe = load_recipe(config.recipe, method.body)
    recipe = override(recipe, _settings(config))
    return Experiment(
        config,
        method,
        recipe,
        work,
        train,
        test,
        size,
        backbone,
        notes,
        presets.warnings(recipe, method, work),
    )


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


def _resumed(config: TrainConfig) -> TrainConfig:
    """The configuration a run was started with; what the user says anew must agree with it."""
    saved: dict[str, Any] = config.folder.config()["run"]
    default = TrainConfig()
    free = {"out", "resume", "overwrite", "workers", "accelerator", "protocol", "eval"}
    for f in dataclasses.fields(TrainConfig):
        new, old = getattr(config, f.name), saved.get(f.name, getattr(default, f.name))
        if f.name not in free and new != getattr(default, f.name) and new != old:
            raise UserError(
                f"{config.folder.path} was started with --{f.name} {old}, not {new}: leave it out to resume"
            )
    kept = {name: getattr(config, name) for name in free if getattr(config, name) != getattr(default, name)}
    return TrainConfig(**(saved | kept | {"out": str(config.folder.path), "resume": True}))


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


class _Checkpoints(L.Callback):
    """Writes `last.ckpt` after each epoch, and keeps the clock of the wall."""

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SelfSupervised)
        if pl_module.step % pl_module.work.steps_per_epoch == 0:
            self.save(trainer, pl_module)

    def elapsed(self) -> float:
        """Seconds of training, earlier parts of the run counted in."""
        return self.seconds + time.perf_counter() - self._started

    def save(self, trainer: L.Trainer, module: SelfSupervised) -> None:
        """Write a checkpoint, unless the weights are spoilt."""
        module.check_finite()
        if trainer.is_global_zero:
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            self.folder.save_checkpoint(
                {
                    "rankgap": rankgap.__version__,
                    "step": module.step,
                    "seconds": self.elapsed(),
                    "model": module.model.state_dict(),
                    "optimizer": trainer.optimizers[0].state_dict(),
                    "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
                }
            )


class _Restore(L.Callback):
    """Puts a checkpoint's optimiser and random state back once the trainer has made the optimiser."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].load_state_dict(self.state["optimizer"])
        torch.set_rng_state(self.state["random"]["cpu"])
        if torch.cuda.is_available() and self.state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(self.state["random"]["cuda"])


@contextmanager
def _stops_on_interrupt(trainer: L.Trainer) -> Iterator[None]:
    """Ctrl-C ends training after the step that runs; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        trainer.should_stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[L.Callback] = (),
    announce: Callable[[Experiment], None] = lambda experiment: None,
) -> dict[str, Any]:
    """Train and evaluate a run, and fill its folder.

    Args:
        config: what to train.
        callbacks: further Lightning callbacks (a progress bar).
        announce: called once with what was chosen, before the first step.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the configuration cannot be.
        NonFiniteError: training met what is not finite; the message names step and last good checkpoint.
        InterruptedRunError: Ctrl-C; the run can be resumed.
    """
    folder, state = config.folder, None
    first_process = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if config.resume:
        config = _resumed(config)
        state = folder.load_checkpoint()
    experiment = prepare(config)
    if state is None and first_process:
        folder.create(overwrite=config.overwrite)
        folder.write_config(resolved(experiment))
    announce(experiment)
    model = experiment.model()
    module = SelfSupervised(
        model,
        experiment.views(),
        experiment.recipe.optimizer,
        experiment.work,
        seed=config.seed,
        rank_every=config.rank_every,
    )
    if state is not None:
        load_weights(model, state["model"], folder.checkpoint)
        module.step = state["step"]
    checkpoints = _Checkpoints(folder, state["seconds"] if state else 0.0)
    if module.step < experiment.work.steps:
        _fit(experiment, module, folder, [*([_Restore(state)] if state else []), *callbacks, checkpoints])
    results = _last_reading(folder) | {
        "seconds": checkpoints.seconds,
        "images_per_second": module.step * config.batch_size / max(checkpoints.seconds, 1e-9),
        "views_per_second": len(experiment.recipe.views)
        * module.step
        * config.batch_size
        / max(checkpoints.seconds, 1e-9),
    }
    if first_process:
        if protocols(config.protocol):
            results |= evaluate_model(experiment, module.model)
        folder.write_results(results)
    return results


def _fit(
    experiment: Experiment, module: SelfSupervised, folder: RunFolder, callbacks: Sequence[L.Callback]
) -> None:
    config, checkpoints = experiment.config, callbacks[-1]
    assert isinstance(checkpoints, _Checkpoints)
    workers = config.workers
    if workers is None:
        workers = 0 if experiment.train.in_memory else (os.cpu_count() or 1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        max_steps=experiment.work.steps - module.step,
        max_epochs=-1,
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=resolve_precision(config.precision, config.accelerator),
        logger=[
            MetricsFile(folder.metrics_file, step=module.step),
            TensorBoardLogger(folder.path, name=None, version="tensorboard"),
        ],
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        sync_batchnorm=config.devices > 1 and not uses_cpu(config.accelerator),
    )
    data = TrainingData(experiment.train, experiment.work, seed=config.seed, workers=workers)
    try:
        with _stops_on_interrupt(trainer), python_warnings.catch_warnings():
            # Sets in memory are fed by index: a worker process would only copy them.
            python_warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer.fit(module, datamodule=data)
    except NonFiniteError as error:
        text = str(error)
        if "step" not in text:
            text += f" at step {module.step}"
        kept = (
            f"the last good checkpoint is {folder.checkpoint} (step {folder.load_checkpoint()['step']})"
            if folder.checkpoint.is_file()
            else "there is no checkpoint yet"
        )
        raise NonFiniteError(f"{text}; {kept}. Lower --lr, or train with --precision 32-true") from error
    if module.step < experiment.work.steps:
        checkpoints.save(trainer, module)
        raise InterruptedRunError(
            f"interrupted at step {module.step} of {experiment.work.steps}; "
            f"go on with: rankgap train --out {folder.path} --resume"
        )
    checkpoints.seconds = checkpoints.elapsed()


def _last_reading(folder: RunFolder) -> dict[str, float]:
    """The last row of the metrics, by the names that results.json uses."""
    names = ("loss", "erank_online", "erank_target", "rank_difference", "erank_online_features")
    names += ("erank_target_features",)
    metrics = folder.metrics()
    return {name: metrics[name][-1] for name in names if metrics.get(name)}


def evaluate_model(
    experiment: Experiment, model: DualBranch, *, branch: Literal["online", "target"] = "online"
) -> dict[str, Any]:
    """Score an encoder on the run's own test set and on each set of `--eval`."""
    config = experiment.config
    tests = {} if experiment.test is None else {"test": experiment.test}
    for name, data in eval_sets(config.eval).items():
        first, second = load_data(data, size=config.size, channels=experiment.train.channels)
        tests[name] = second or first
    return evaluate(
        model.encoder(branch),
        experiment.train,
        tests,
        size=experiment.size,
        protocol=protocols(config.protocol),
        branch=branch,
        device=torch.device("cpu" if uses_cpu(config.accelerator) else "cuda"),
        seed=config.seed,
    )


def restore(path: str | Path) -> tuple[Experiment, DualBranch]:
    """An experiment and its trained model, from a run folder.

    Raises:
        UserError: no run, no checkpoint, or a checkpoint of another model.
    """
    folder = RunFolder(Path(path))
    saved = folder.config()
    state = folder.load_checkpoint()
    config = TrainConfig(**(saved["run"] | {"out": str(path)}))
    experiment = dataclasses.replace(prepare(config), recipe=from_dict(saved["recipe"], f"{path}/config.yaml"))
    model = experiment.model()
    load_weights(model, state["model"], folder.checkpoint)
    return experiment, model


def load_encoder(path: str | Path, *, branch: Literal["online", "target"] = "online") -> nn.Module:
    """The trained encoder of a run, (B, C, H, W) normalised images -> (B, F) features; needs no data.

    Args:
        path: the run folder.
        branch: whose encoder; the target's is the EMA teacher where the method has one.
    """
    folder = RunFolder(Path(path))
    saved = folder.config()
    run, about = saved["run"], saved["model"]
    recipe = from_dict(saved["recipe"], f"{path}/config.yaml")
    model = build(
        design(run["method"], online=run["online"], target=run["target"]),
        backbone=about["backbone"],
        heads=recipe.heads,
        channels=about["channels"],
        size=about["size"],
        views=len(recipe.views),
    )
    load_weights(model, folder.load_checkpoint()["model"], folder.checkpoint)
    return model.encoder(branch).eval()
