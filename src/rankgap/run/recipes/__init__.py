"""Recipes: the settings a method is trained with, in YAML that is read into dataclasses.

A recipe is a YAML file under `recipes/<data set>/<body>.yaml`; each method names its body. The options of a map
nest under its branch and its name, `target.sinkhorn.eps`, as the map itself defines them. A view with `count: 8`
stands for eight such views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rankgap.choices import Side
from rankgap.errors import UserError, unknown
from rankgap.model.encoder_options import EncoderOptions, fitting_size
from rankgap.model.heads import Heads
from rankgap.model.maps import kinds_on
from rankgap.model.methods import Method
from rankgap.run.optimizer import OptimizerOptions
from rankgap.run.reader import parse_yaml, plain, read, read_over, read_text
from rankgap.spectra.pair import SIDES
from rankgap.views import ViewConfig

MOST_VIEWS = 64
LARGE_VIEW = 96  # pixels; from here on crops of a large view are worth looking at


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Heads):
    """Everything a method is trained with, except the data: encoder, heads, optimiser and views.

    Args:
        about: the accuracy it reaches, in what time, on what hardware, over how many seeds, and who reports it.
        optimizer: optimiser and learning-rate schedule.
        encoder: the encoder that it was published for.
        views: augmentation of each view, two or more; those that the target branch sees come first.
    """

    about: str
    optimizer: OptimizerOptions
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    views: tuple[ViewConfig, ...] = field(default_factory=lambda: (ViewConfig(), ViewConfig()))

    def __post_init__(self) -> None:
        if len(self.views) < 2:
            raise UserError(f"views: a recipe needs two views or more, got {len(self.views)}")
        seen = [view.target for view in self.views]
        if not seen[0] or seen != sorted(seen, reverse=True):
            raise UserError(
                f"views: those that the target branch sees come first, at least one; got target {seen}"
            )

    @property
    def targets(self) -> int:
        """G, the number of views that the target branch sees."""
        return sum(view.target for view in self.views)

    def sizes(self, size: int) -> tuple[int, ...]:
        """The side in pixels of each view in a run of a size."""
        return tuple(view.size or size for view in self.views)

    def sized(self, size: int, patch: int = 1) -> Recipe:
        """The recipe with its views in proportion to the run's: 96 beside 224 become 41 beside 96.

        Args:
            size: side in pixels of the largest of the views that the target branch sees, where they have sizes.
            patch: side of the encoder's patch, of which the sizes become multiples.
        """
        own = max((view.size or 0 for view in self.views if view.target), default=0)
        if not own:
            return self
        views = tuple(
            view
            if view.size is None
            else dataclasses.replace(view, size=fitting_size(view.size * size / own, patch))
            for view in self.views
        )
        return dataclasses.replace(self, views=views)

    def used_by(self, method: Method) -> Recipe:
        """The recipe with options for exactly the maps that a method has."""
        online, target = (
            {kind.name: self.options(side, kind, argument) for kind, argument in method.maps(side)}
            for side in SIDES
        )
        return dataclasses.replace(self, online=online, target=target)


def recipe_from(values: object, where: str) -> Recipe:
    """A recipe from plain values.

    Args:
        values: the values as YAML gives them.
        where: the recipe's name in an error.

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type; the message names its place.
    """
    return with_map_options(read(Recipe, _counted(values, where), where), where)


def _counted(values: object, where: str) -> object:
    """The values with each view that has a count in its place that many times."""
    if not isinstance(values, Mapping) or not isinstance(views := values.get("views"), list):
        return values
    each: list[object] = []
    for index, view in enumerate(views):
        own = dict(view) if isinstance(view, Mapping) else view
        count = own.pop("count", 1) if isinstance(own, dict) else 1
        if type(count) is not int or not 1 <= count <= MOST_VIEWS:
            raise UserError(
                f"{where}.views.{index}.count takes a whole number from 1 to {MOST_VIEWS}, got {count!r}"
            )
        each += [own] * count
    return {**values, "views": each}


def with_map_options(recipe: Recipe, where: str) -> Recipe:
    """Read the plain map options of a recipe as the dataclasses that the maps define.

    Args:
        recipe: a recipe as `reader.read` returns it.
        where: the recipe's name in an error.

    Raises:
        UserError: an unknown map or option, or a value of the wrong type; the message names its place.
    """
    online, target = (_options(side, recipe.of(side), f"{where}.{side}") for side in SIDES)
    return dataclasses.replace(recipe, online=online, target=target)


def _options(side: Side, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    kinds = kinds_on(side)
    for name in given:
        if name not in kinds:
            raise unknown(f"map of {where}", name, kinds)
    return {name: read_over(kinds[name].options, options, f"{where}.{name}") for name, options in given.items()}


def recipe_names() -> list[str]:
    """The data sets that have recipes."""
    return sorted(p.name for p in resources.files(__name__).iterdir() if p.is_dir() and "__" not in p.name)


def recipe_for(body: str, size: int | None) -> str:
    """The data set whose recipe suits a run.

    Args:
        body: the method whose recipe it is.
        size: side of the run's views in pixels; None if it is not known yet.
    """
    if (size is None or size >= LARGE_VIEW) and body in _bodies("multicrop"):
        return "multicrop"
    return "cifar" if size is None or size <= LARGE_VIEW else "imagenet100"


def _bodies(name: str) -> list[str]:
    folder = resources.files(__name__) / name
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name: str, body: str) -> Recipe:
    """Load a body's recipe for a data set, or a recipe from a file.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        body: the method whose projector, optimiser and views to use: byol, simsiam, swav, dino.

    Raises:
        UserError: no such recipe, or a file that is not a recipe.
    """
    if name in recipe_names():
        if body not in (there := _bodies(name)):
            raise UserError(
                f"recipe {name} is for {' and '.join(there)}, not for {body}: choose auto, or one of "
                f"{', '.join(other for other in recipe_names() if body in _bodies(other))}"
            )
        text = (resources.files(__name__) / name / f"{body}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = read_text(Path(name))
    else:
        raise unknown("recipe", name, ["auto", *recipe_names(), "the path of a YAML file"])
    return recipe_from(parse_yaml(text, f"recipe {name}"), f"recipe {name}")


def override(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with some values replaced.

    Args:
        recipe: the recipe to start from.
        settings: dotted keys and values: {"optimizer.lr": 0.1, "projector.widths": [512, 128], "views.0.flip": 0};
            * stands for each item of a list: {"views.*.flip": 0}.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    values = plain(recipe)
    for side in SIDES:
        values[side] = {
            name: plain(recipe.of(side).get(name, kind.options)) for name, kind in kinds_on(side).items()
        }
    for key, value in settings.items():
        parts = key.split(".")
        if not _set(values, parts, value):
            if parts[0] == "views" and parts[-1] == "count":
                raise UserError(
                    f"--settings {key}: count is for a recipe's file; copy one, and pass its path as --recipe"
                )
            raise unknown("setting", key, _keys(values, parts))
    return recipe_from(values, "recipe")


def _set(place: Any, path: Sequence[str], value: Any) -> bool:
    """Set the value at a path; False if there is no such path."""
    part, *rest = path
    keys: list[Any] = [part] if isinstance(place, dict) and part in place else []
    if isinstance(place, list):
        keys = [i for i in range(len(place)) if part in ("*", str(i))]
    for key in keys:
        if not rest:
            place[key] = value
        elif not _set(place[key], rest, value):
            return False
    return bool(keys)


def _keys(place: Any, asked: Sequence[str]) -> Iterator[str]:
    """The dotted keys of nested values. A list shows the item that was asked for, or * for all of its items."""
    part, *rest = asked or ("",)
    if isinstance(place, dict):
        inner = [(str(key), value) for key, value in place.items()]
    elif isinstance(place, list) and any(isinstance(item, dict) for item in place):
        one = int(part) if part.isdigit() and int(part) < len(place) else None
        inner = [("*", place[0])] if one is None else [(part, place[one])]
    else:
        yield ""
        return
    for key, value in inner:
        for below in _keys(value, rest):
            yield f"{key}.{below}" if below else key
