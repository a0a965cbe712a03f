"""What a run is asked to be: every flag of `rankgap train`, and what its texts stand for."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from rankgap.errors import UserError, unknown
from rankgap.evaluate import PROTOCOLS
from rankgap.model.methods import title
from rankgap.run.folder import RunFolder

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
Autocast = Literal["bf16-mixed", "16-mixed", "32-true"]
Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true"]


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """What to train, on what, and where to put it.

    Args:
        method: a row of the zoo (`rankgap methods` lists them).
        online: replaces the online map: identity, the gain of a low-pass filter (power:0.5, log1p, or a formula in
            s, such as "s/(s+0.1)"), learned (a low-pass whose gain is trained), or a predictor (predictor,
            directpred, directset:2, directcopy, isoloss).
        target: replaces the target map: identity, or the gain of a high-pass filter (power:-0.5; auto chooses the
            exponent from each batch's spectrum). A target filter alone also removes the predictor; --online
            predictor keeps it.
        scale: what a gain acts on: rms is s / sqrt(batch size), raw is s (as the paper's authors wrote it).
        data: training images: digits, cifar10, cifar100, folder:DIR (any nested folder of images, labels not
            needed), or hf:NAME_OR_DIR (a Hub name, or a folder of Parquet).
        eval: further test sets, as NAME=DATA.
        limit: train on the first N images of a seeded shuffle.
        size: side of a view in pixels; by default the images' own up to 96 px, else at most 224.
        channels: convert all images to this many channels (1 or 3); by default they must agree.
        backbone: resnet_tiny, or any timm name; by default resnet_tiny on a CPU and resnet18 elsewhere.
        epochs: passes over the images.
        batch_size: images a step, over all devices.
        recipe: auto (the method's published recipe, adapted where the work is small), cifar or imagenet100 (as
            published), or a path of a YAML file.
        lr: peak learning rate for a batch of 256, in place of the recipe's.
        settings: further values in place of the recipe's, as KEY=VALUE (heads.prototypes=512).
        rank_every: steps between two readings of the ranks.
        loggers: where readings go beside metrics.csv: tensorboard, csv, wandb, mlflow, joined by commas, or none.
        keep_every: also keep the checkpoint of every N-th epoch (checkpoints/epoch-0010.ckpt); by default the last
            alone.
        save_best: rank also keeps, as checkpoints/best.ckpt, that epoch in the second half of the run whose
            features have the highest RankMe on 2,048 training images (no labels used).
        protocol: evaluation at the end: knn, linear, linear_sgd, joined by commas; none for no evaluation.
        seed: of weights, order of images and views; the same seed gives the same numbers on a CPU.
        precision: auto is bf16-mixed where the device has bf16, else 16-mixed on a GPU and 32-true on a CPU.
        compile: compile the encoder with torch.compile: the first step waits for it (half a minute on a CPU), each
            other one is faster. Numbers differ in the last digits.
        accelerator: auto, cpu, gpu, cuda or mps.
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
    loggers: str = "tensorboard"
    keep_every: int | None = None
    save_best: Literal["rank"] | None = None
    protocol: str = "knn,linear"
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    accelerator: str = "auto"
    devices: int = 1
    workers: int | None = None
    out: str | None = None
    resume: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: a number below its least value, or an unknown protocol, accelerator or evaluation set.
        """
        for name, least in (("epochs", 1), ("batch_size", 2), ("rank_every", 1), ("devices", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{flag(name)} must be at least {least}, got {getattr(self, name)}")
        for name, least in (("limit", 2), ("size", 2), ("keep_every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{flag(name)} must be at least {least}, got {value}")
        if self.batch_size % self.devices:
            raise UserError(f"--batch-size {self.batch_size} does not divide among {self.devices} devices")
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: choose one")
        device(self.accelerator)
        protocols(self.protocol)
        loggers(self.loggers)
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
        data = Path(self.data.partition(":")[2] or self.data).resolve().name
        return RunFolder(Path("runs") / file_name(f"{self.title}-{data}-seed{self.seed}"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """A configuration from plain values.

        Args:
            values: as YAML gives them.
            where: what to call them in an error.

        Raises:
            UserError: a key that is none.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown(f"key of {where}", str(key), known)
        return cls(**values)


def flag(name: str) -> str:
    """A field's flag on the command line."""
    return "--" + name.replace("_", "-")


def file_name(text: str) -> str:
    """A title as the name of a folder: no spaces, no colons."""
    return re.sub(r"[^\w.+-]+", "-", text.replace(":", ""))


def _listed(what: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names in a comma-separated list; none for "none"."""
    names = tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))
    for name in names:
        if name not in known:
            raise unknown(what, name, [*known, "none"])
    return names


def protocols(text: str) -> tuple[str, ...]:
    """The evaluations that a comma-separated list names; none for "none"."""
    return _listed("protocol", text, PROTOCOLS)


def loggers(text: str) -> tuple[str, ...]:
    """The loggers that a comma-separated list names, all of them installed; none for "none"."""
    names = _listed("logger", text, LOGGERS)
    for name in names:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise UserError(f"--loggers {name}: it is not installed here (pip install {name})")
    return names


def eval_sets(items: Sequence[str]) -> dict[str, str]:
    """Names and data of NAME=DATA items."""
    sets: dict[str, str] = {}
    for item in items:
        name, equals, data = item.partition("=")
        if not (name and equals and data):
            raise UserError(f"--eval takes NAME=DATA, got {item!r}")
        if name in (*sets, "test"):
            raise UserError(f"--eval {item}: there is another set called {name}")
        sets[name] = data
    return sets


def device(accelerator: str) -> torch.device:
    """Where a run computes.

    Args:
        compile: compile the encoder with torch.compile: the first step waits for it (half a minute on a CPU), each
            other one is faster. Numbers differ in the last digits.
        accelerator: auto, cpu, gpu, cuda or mps.

    Raises:
        UserError: an unknown accelerator, or one that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted: Mapping[str, Iterable[str]] = {"auto": available, "gpu": ("cuda", "mps")} | {
        name: (name,) for name in available
    }
    if accelerator not in wanted:
        raise unknown("accelerator", accelerator, wanted)
    found = next((name for name in wanted[accelerator] if available[name]), None)
    if found is None:
        raise UserError(f"--accelerator {accelerator}: torch finds none here; leave it out, or take cpu")
    return torch.device(found)


def resolve_precision(precision: Precision, where: torch.device) -> Autocast:
    """The precision that "auto" stands for on a device."""
    if precision != "auto":
        return precision
    if where.type == "cpu":
        return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
    if where.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "32-true"
