"""Recipes: what a method is trained with. Data in YAML, read into dataclasses, adapted to small work.

A recipe is a YAML file under `recipes/<data set>/<body>.yaml`; a method names the body it stands on.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from rankgap.errors import UserError, unknown
from rankgap.filters.spectral import Estimator, Solver
from rankgap.model.mlp import Activation, OutputNorm
from rankgap.views.random_views import ViewConfig

OptimizerName = Literal["sgd", "lars", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """What follows the encoder.

    Args:
        projector: widths of the projector's layers, output last.
        projector_norm: batch norm in the projector's hidden layers.
        projector_output_norm: batch norm after its last layer.
        activation: of projector and predictor.
        predictor: widths of the predictor's hidden layers (its output is as wide as its input).
        prototypes: number of prototypes K.
        temperature: of the online assignment.
        freeze_epochs: epochs in which the prototypes do not move.
        sinkhorn_eps: entropy of SwAV's transport.
        sinkhorn_iterations: its iterations.
        queue: embeddings a view that SwAV's queue holds; 0 for none.
        queue_epochs: epochs before the queue is used.
        teacher_temperature: DINO's target temperature after its warm-up.
        teacher_warmup_temperature: the same at the start.
        teacher_warmup_epochs: epochs from one to the other.
        centre_momentum: of DINO's centre.
        momentum: of the EMA teacher at the start; it ends at 1.
        solver: of spectral filters: auto, gram, svd or iterative.
        estimator: whose spectrum they filter by: the batch's, or ema, a running correlation's.
        estimator_momentum: of the running correlation.
        estimator_every: steps from one decomposition of it to the next.
        correlation_momentum: of a closed-form predictor's running correlation; by default the published one.
    """

    projector: tuple[int, ...]
    projector_norm: bool = True
    projector_output_norm: OutputNorm = "none"
    activation: Activation = "relu"
    predictor: tuple[int, ...] = ()
    prototypes: int = 0
    temperature: float = 0.1
    freeze_epochs: float = 0
    sinkhorn_eps: float = 0.05
    sinkhorn_iterations: int = 3
    queue: int = 0
    queue_epochs: float = 0
    teacher_temperature: float = 0.07
    teacher_warmup_temperature: float = 0.04
    teacher_warmup_epochs: float = 50
    centre_momentum: float = 0.9
    momentum: float = 0.99
    solver: Solver = "auto"
    estimator: Estimator = "batch"
    estimator_momentum: float = 0.99
    estimator_every: int = 10
    correlation_momentum: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """How the weights move.

    Args:
        name: sgd, lars (timm's) or adamw.
        lr: peak learning rate for a batch of 256; it is scaled by batch / 256.
        weight_decay: L2 for sgd and lars, decoupled for adamw.
        momentum: of sgd and lars.
        warmup_epochs: linear warm-up from `warmup_lr`.
        warmup_lr: where it starts.
        final_lr: where the cosine ends, for a batch of 256.
        decay_all: apply weight decay (and LARS's scaling) to biases and norms too.
        constant_predictor_lr: keep the predictor's learning rate at its peak (SimSiam).
        trust: LARS's coefficient eta.
    """

    name: OptimizerName = "sgd"
    lr: float
    weight_decay: float = 1e-5
    momentum: float = 0.9
    warmup_epochs: float = 10
    warmup_lr: float = 3e-5
    final_lr: float = 0.0
    decay_all: bool = False
    constant_predictor_lr: bool = False
    trust: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that a method is trained with, but the data.

    Args:
        about: what it reaches, in which time, on which hardware, over how many seeds; and who says so.
        heads: widths, temperatures, schedules of the maps.
        optimizer: optimiser and learning-rate schedule.
        views: augmentation of each view, two or more.
    """

    about: str
    heads: Heads
    optimizer: Optimizer
    views: tuple[ViewConfig, ...] = field(default_factory=lambda: (ViewConfig(), ViewConfig()))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value`, as YAML gives it, as a `kind`; wrong types and unknown keys are named with their place."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise UserError(f"{where} takes keys and values, got {value!r}")
        hints = _hints(kind)
        for key in value:
            if key not in hints:
                raise unknown(f"key of {where}", str(key), hints)
        missing = [
            f.name
            for f in dataclasses.fields(kind)
            if f.name not in value and f.default is f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise UserError(f"{where} lacks {', '.join(missing)}")
        return kind(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} takes a list, got {value!r}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise UserError(f"{where} takes {len(kinds)} values, got {value!r}")
        return tuple(_convert(k, item, where) for k, item in zip(kinds, value, strict=True))
    if origin is Literal:
        if value not in args:
            raise unknown(where, str(value), args)
        return value
    if origin in (typing.Union, types.UnionType):
        return value if value is None else _convert(next(k for k in args if k is not type(None)), value, where)
    try:
        if kind is bool and not isinstance(value, bool):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} takes a {kind.__name__}, got {value!r}") from None


def from_dict(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Args:
        values: as YAML gives them.
        where: what to call it in an error.

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type, named with its place.
    """
    recipe: Recipe = _convert(Recipe, values, where)
    if len(recipe.views) < 2:
        raise UserError(f"{where}.views needs two views or more, got {len(recipe.views)}")
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, fit for YAML; `from_dict` reads it back."""
    plain = dataclasses.asdict(recipe)

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return [listed(item) for item in value] if isinstance(value, tuple | list) else value

    result: dict[str, Any] = listed(plain)
    return result


def recipe_names() -> list[str]:
    """The data sets that recipes exist for."""
    return sorted(p.name for p in resources.files(__name__).iterdir() if p.is_dir() and "__" not in p.name)


def load_recipe(name: str, body: str) -> Recipe:
    """The recipe of a body for a data set, or of a file.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        body: the method whose projector, optimiser and views are meant: byol, simsiam, swav, dino.

    Raises:
        UserError: no such recipe, or a file that is not one.
    """
    if name in recipe_names():
        text = (resources.files(__name__) / name / f"{body}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise unknown("recipe", name, ["auto", *recipe_names(), "a path of a YAML file"])
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is not YAML: {' '.join(str(error).split())}") from error
    return from_dict(values, f"recipe {name}")


def override(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A recipe with some values replaced.

    Args:
        recipe: the one to start from.
        settings: dotted keys and values: {"optimizer.lr": 0.1, "heads.projector": [512, 128]}.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    values = to_dict(recipe)
    for key, value in settings.items():
        *path, last = key.split(".")
        place: Any = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            known = [f"{group}.{k}" for group in ("heads", "optimizer") for k in values[group]] + ["views"]
            raise unknown("setting", key, known)
        place[last] = value
    return from_dict(values)
