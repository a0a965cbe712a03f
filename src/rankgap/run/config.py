"""The configuration of a run: every flag of `rankgap train`, typed."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rankgap.choices import OnBadImage, Precision, Protocol
from rankgap.errors import UserError, unknown
from rankgap.filters.gains import Scale
from rankgap.model.methods import title
from rankgap.run.flags import flag, parameters, plain_list
from rankgap.run.reader import parse_yaml, read, read_text
from rankgap.views.view_config import LARGEST_VIEW

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
Autocast = Literal["bf16-mixed", "16-mixed", "32-true"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]

_LONGEST = 120  # bytes of a folder's name that we make; file systems take 255, some of them 143
_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "rank_every": 1,
    "devices": 1,
    "limit": 2,
    "size": 2,
    "keep_every": 1,
    "channels": 1,
    "threads": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What to train, on which data, and where the run goes.

    Args:
        method: a method of the zoo (`rankgap methods` lists them).
        online: replaces the online map: identity, the gain of a low-pass filter (power:0.5, log1p, or a formula in
            s, such as "s/(s+0.1)"), learned (a low-pass whose gain is trained), or a predictor (predictor,
            directpred, directset:2, directcopy, isoloss).
        target: replaces the target map: identity, or the gain of a high-pass filter (power:-0.5; auto chooses the
            exponent from each batch's spectrum). A target filter alone also removes the predictor; --online
            predictor keeps it.
        scale: what a gain acts on, in place of the recipe's rms: rms is s / sqrt(batch size), raw is s (as the
            paper's authors wrote it).
        data: training images: digits, cifar10, cifar100, folder:DIR (any nested folder of images, labels not
            needed), or hf:NAME_OR_DIR (a Hub name, or a folder of Parquet).
        eval: further evaluation sets, as NAME=DATA.
        on_bad_image: error stops at an unreadable image, before training if possible; skip leaves such images out
            and lists them in the run folder (skipped_images.txt).
        limit: train on the first N images of a seeded shuffle.
        size: side of a view in pixels; by default the images' own up to 96 px, otherwise at most 224.
        channels: convert all images to this many channels (1 or 3); by default all must have the same number.
        backbone: resnet_tiny, or any timm name; by default the one that the recipe names, or else resnet_tiny on a
            CPU and resnet18 elsewhere.
        init: pretrained weights to start the encoder from: timm (the backbone's own; its name may have a tag, as
            in vit_tiny_patch16_224.augreg_in21k), hf:REPO or hf:REPO@REVISION of the Hugging Face Hub, run:FOLDER
            (the online encoder of another run), teacher:FOLDER (its EMA teacher), or a file (.safetensors, .pt,
            .pth). The frozen start is scored first, for comparison.
        init_partial: where --init has no weights that fit, keep random ones instead of stopping.
        grad_checkpointing: compute the encoder's activations again in the backward pass instead of keeping them:
            less memory for more time, and the same numbers.
        epochs: passes over the images.
        batch_size: images per batch, over all devices.
        accumulate: batches per optimiser step, for a GPU that cannot hold a larger batch; the learning rate is
            that of all their images together.
        recipe: auto (the method's published recipe, adapted if the run is small, with small local crops for swav
            and dino from 96 px on), cifar, imagenet100 or imagenet (as published; imagenet names its encoder),
            multicrop (imagenet100 with local crops, for swav and dino), or the path of a YAML file.
        lr: peak learning rate for a batch of 256, in place of the recipe's.
        settings: values that replace the recipe's, as KEY=VALUE (prototypes.count=512,
            target.sinkhorn.eps=0.03, views.0.flip=0, or views.*.flip=0 for every view).
        fast_dev_run: a dry run: two optimiser steps of the recipe as it is, then an evaluation on a few images.
            --epochs and --limit have no effect.
        rank_every: steps between readings of the ranks; auto, the default, takes at least 40 readings, and reads
            every tenth step of a long run.
        loggers: where readings go besides metrics.csv: tensorboard, csv, wandb, mlflow, joined by commas, or none.
        keep_every: also keep the checkpoint of every N-th epoch (checkpoints/epoch-0010.ckpt); by default only the
            last is kept.
        save_best: rank also keeps, as checkpoints/best.ckpt, the epoch in the second half of the run whose
            features have the highest RankMe on 2,048 training images (no labels are used).
        protocol: evaluation at the end: knn, linear, linear_sgd, joined by commas; none for no evaluation.
        seed: seed of weights, image order and views; on a CPU, the same seed and --threads give the same numbers.
        threads: threads per operation on a CPU; by default torch's choice, which config.yaml records. If other
            processes use the cores, 1 is faster than 2.
        precision: auto is bf16-mixed where the device has bf16, else 16-mixed on a GPU and 32-true on a CPU.
        compile: compile the encoder with torch.compile. The first step waits for it (half a minute on a CPU); the
            others are faster. Numbers differ in the last digits.
        accelerator: auto, cpu, gpu, cuda or mps.
        devices: number of devices, which share each batch; spectra, codes, batch norms and readings are of the
            whole batch.
        workers: processes that decode files ahead; by default 0 for sets in memory and on a CPU, else one
            per core.
        imports: a Python module or file (mine.py) to import first, so that its gains (GAINS["mine"]) and maps
            (register_map) can be named; repeat the flag for each module, and pass it to later commands too.
        out: the run folder; by default a folder in runs/ named after method, filters, data and seed.
        resume: resume from the run folder's last checkpoint; a larger --epochs extends the run.
        overwrite: replace an existing run folder.

    Raises:
        UserError: a number below its minimum, or flags that contradict each other.
    """

    method: str = "simsiam"
    online: str | None = None
    target: str | None = None
    scale: Scale | None = None
    data: str = "digits"
    eval: Mapping[str, str] = field(default_factory=dict)
    on_bad_image: OnBadImage = "error"
    limit: int | None = None
    size: int | None = None
    channels: int | None = None
    backbone: str | None = None
    init: str | None = None
    init_partial: bool = False
    grad_checkpointing: bool = False
    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    recipe: str = "auto"
    lr: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fast_dev_run: bool = False
    rank_every: int | None = None
    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    keep_every: int | None = None
    save_best: Literal["rank"] | None = None
    protocol: tuple[Protocol, ...] = ("knn", "linear")
    seed: int = 0
    threads: int | None = None
    precision: Precision = "auto"
    compile: bool = False
    accelerator: Accelerator = "auto"
    devices: int = 1
    workers: int | None = None
    imports: tuple[str, ...] = ()
    out: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{flag(name)} must be at least {least}, got {value}")
        if self.size is not None and self.size > LARGEST_VIEW:
            raise UserError(f"--size must be at most {LARGEST_VIEW} pixels, got {self.size}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"--lr must be a finite number above 0, got {self.lr}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers must be at least 0, got {self.workers}")
        if self.batch_size % self.devices:
            raise UserError(f"--batch-size must be a multiple of --devices {self.devices}, got {self.batch_size}")
        if self.resume and self.overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it: choose one")
        if self.init_partial and self.init is None:
            raise UserError(
                "--init-partial says what to do where --init has no weights: add --init, or leave it out"
            )
        if "test" in self.eval:
            raise UserError("--eval test=...: the data's own test set is called test, choose another name")

    def begun(self) -> TrainConfig:
        """The configuration as a run folder keeps it, without the flags that resume or overwrite a run."""
        return replace(self, resume=False, overwrite=False)

    @property
    def title(self) -> str:
        """The run's name in tables."""
        return title(self.method, online=self.online, target=self.target)

    @property
    def path(self) -> Path:
        """The run folder."""
        if self.out is not None:
            return Path(self.out)
        data = Path(self.data.partition(":")[2] or self.data).resolve().name
        start = (
            "" if self.init is None else f"-from-{Path(self.init.partition(':')[2] or self.init).resolve().stem}"
        )
        return Path("runs") / (file_name(f"{self.title}-{data}{start}") + f"-seed{self.seed}")


def file_name(text: str) -> str:
    """A title as a folder name, without spaces or colons and no longer than any file system allows."""
    name = re.sub(r"[^\w.+-]+", "-", text.replace(":", "")).encode()
    if len(name) > _LONGEST:
        digest = hashlib.blake2b(name, digest_size=4).hexdigest()
        return f"{name[: _LONGEST - 9].decode(errors='ignore')}-{digest}"
    return name.decode()


def read_config_file(path: str) -> dict[str, Any]:
    """The configuration fields that a YAML file sets; a list may be text, as on the command line.

    Raises:
        UserError: the file cannot be read, or holds an unknown field or a value of the wrong type.
    """
    values = parse_yaml(read_text(Path(path)), path)
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected keys and values, got {type(values).__name__}")
    return config_fields(values, f"{path}: ", kind=f"key of {path}")


def config_fields(values: Mapping[str, Any], where: str = "", *, kind: str = "keyword") -> dict[str, Any]:
    """Fields of a configuration by name, each read as its type; a list may be text, as on the command line.

    Args:
        values: plain values by field name.
        where: prefix of the field's name in errors.
        kind: the word for a field in an error about an unknown one.

    Raises:
        UserError: an unknown field, or a value of the wrong type.
    """
    kinds = parameters(TrainConfig)
    for name in values:
        if name not in kinds:
            raise unknown(kind, str(name), kinds, listed="rankgap train --help")
    return {
        name: read(kinds[name][0], plain_list(kinds[name][0], value), f"{where}{name}")
        for name, value in values.items()
    }
