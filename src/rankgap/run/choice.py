"""The encoder and the recipe of a run: chosen for a new one, kept for a saved one."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import nn

from rankgap.data import ImageSet
from rankgap.errors import UserError
from rankgap.filters.learned import LearnedOptions
from rankgap.filters.spectral import FilterOptions
from rankgap.model.backbones import build_encoder, check_backbone, own_name, patch_size
from rankgap.model.encoder_options import fitting_size
from rankgap.model.methods import Method
from rankgap.run import continuing, presets
from rankgap.run.config import TrainConfig
from rankgap.run.recipes import Recipe, load_recipe, override, recipe_for
from rankgap.run.saved import SavedRun
from rankgap.run.start import Start, choose_backbone, start_from
from rankgap.run.work import Work
from rankgap.spectra.pair import SIDES


class Choice(Protocol):
    """The choices of a run, in the order in which its facts become known: images, view size, encoder, steps.

    Attributes:
        backbone: name of the encoder.
        channels: channels that images are converted to; None for their own.
    """

    backbone: str
    channels: int | None

    def view_size(self, images: ImageSet) -> int:
        """The side of a view in pixels."""

    def start(self, images: ImageSet, size: int) -> Start:
        """The encoder. Random weights are drawn from torch's generator."""

    def recipe(self, images: ImageSet, size: int, work: Work, network: nn.Module) -> tuple[Recipe, list[str]]:
        """The recipe, and what was chosen and why, one sentence each."""


def choose(
    config: TrainConfig, method: Method, device: torch.device, *, saved: SavedRun | None, own: nn.Module | None
) -> Choice:
    """The choices of a saved run, or those of a new one. See `NewRun` and `KeptRun`."""
    return NewRun(config, method, device, own) if saved is None else KeptRun(saved, own)


class NewRun:
    """The choices of a new run, from its configuration. Everything that needs no images is checked at once.

    Args:
        config: the configuration.
        method: the row, filters included.
        device: the device to compute on.
        own: the user's own encoder; None for a named one.

    Raises:
        UserError: there is no such recipe, backbone or weights, or the encoder does not take views of --size.
    """

    def __init__(self, config: TrainConfig, method: Method, device: torch.device, own: nn.Module | None) -> None:
        self.config, self.method, self.own = config, method, own
        self.channels = config.channels
        self.settings = recipe_settings(config, method)
        self._load = cache(partial(load_recipe, body=method.body))  # reads each recipe once
        wanted = override(self._published(config.size), self.settings).used_by(method)
        _check_used(config, method)
        self.backbone, self.weights = choose_backbone(config, wanted, device, own)
        self.patch = patch_size(own or self.backbone)
        if config.size is not None:
            self._check_size(config.size)
            if own is None:
                recipe = self._sized(config.size, self.patch)
                build_encoder(self.backbone, **_takes(recipe, config.size, config.channels or 3))

    def _published(self, size: int | None) -> Recipe:
        """The recipe that the configuration names; auto chooses by the views' size, which may be unknown yet."""
        name = self.config.recipe
        return self._load(recipe_for(self.method.body, size) if name == "auto" else name)

    def _sized(self, size: int, patch: int) -> Recipe:
        """The published recipe at a size, with the user's settings."""
        return override(self._published(size).sized(size, patch), self.settings)

    def _check_size(self, size: int) -> None:
        if rest := size % self.patch:
            near = sorted({fitting_size(size - rest, self.patch), size - rest + self.patch})
            raise UserError(
                f"--size {size}: {self.backbone} takes multiples of its patch of {self.patch} px: "
                f"choose {' or '.join(map(str, near))}"
            )

    def view_size(self, images: ImageSet) -> int:
        """The size that was asked for, or one that suits the images and the encoder's patch."""
        return fitting_size(view_size(self.config.size, images), self.patch)

    def start(self, images: ImageSet, size: int) -> Start:
        """The encoder, from pretrained weights if there are any."""
        takes = _takes(self._sized(size, self.patch), size, images.channels)
        if self.weights is not None:
            return start_from(self.weights, self.backbone, partial=self.config.init_partial, **takes)
        return Start(encoder=build_encoder(self.own or self.backbone, **takes))

    def recipe(self, images: ImageSet, size: int, work: Work, network: nn.Module) -> tuple[Recipe, list[str]]:
        """The published recipe; with --recipe auto, adapted to the images, the run's size and its start."""
        config, recipe = self.config, self._published(size).sized(size, self.patch)
        notes = self._note_on_patches(view_size(config.size, images), size)
        if config.recipe == "auto":
            recipe, said = presets.adapt_views(recipe, config.data, images.channels)
            notes += said
            if work.small and not config.fast_dev_run:
                recipe, said = presets.adapt(recipe, self.method, work)
                notes += said
            if self.weights is not None and not config.fast_dev_run:
                recipe, said = continuing.adapt(recipe, self.method, work, network)
                notes += said
        recipe = override(recipe, self.settings).used_by(self.method)
        presets.check_view_sizes(recipe, max(images.side, size))
        return recipe, notes

    def _note_on_patches(self, wanted: int, size: int) -> list[str]:
        """A note on views that have another size because it must be a multiple of a patch; empty if none have."""
        then = wanted, *self._sized(size, 1).sizes(size)
        now = size, *self._sized(size, self.patch).sizes(size)
        changed = [f"{b} px instead of {a}" for a, b in dict(zip(then, now, strict=True)).items() if a != b]
        if not changed:
            return []
        takes = f"{self.backbone} takes multiples of its patch of {self.patch} px"
        return [f"views of {', '.join(changed)}: {takes}"]


class KeptRun:
    """The choices of a saved run, whatever would be chosen now.

    Args:
        saved: the run.
        own: another instance of the user's own encoder; None for a named one.

    Raises:
        UserError: the run's encoder is the user's own and none is given.
    """

    def __init__(self, saved: SavedRun, own: nn.Module | None) -> None:
        self.saved, self.own = saved, own
        self.backbone = saved.model.backbone if own is None else own_name(own)
        self.channels: int | None = saved.model.channels
        if own is None:
            check_backbone(self.backbone)

    def view_size(self, images: ImageSet) -> int:
        """The run's own."""
        return self.saved.model.size

    def start(self, images: ImageSet, size: int) -> Start:
        """The encoder with random weights, in whose place those of a checkpoint come."""
        stem, takes = self.saved.model.stem, _takes(self.saved.recipe, size, images.channels)
        return Start(encoder=build_encoder(self.own or self.backbone, stem=stem, **takes), stem=stem)

    def recipe(self, images: ImageSet, size: int, work: Work, network: nn.Module) -> tuple[Recipe, list[str]]:
        """The run's own."""
        return self.saved.recipe, []


def _takes(recipe: Recipe, size: int, channels: int) -> dict[str, Any]:
    """The options of `build_encoder` that follow from a recipe and its images."""
    sizes, dropped = recipe.sizes(size), recipe.encoder.drop_path
    return {"channels": channels, "size": size, "sizes": sizes, "drop_path": dropped}


def view_size(asked: int | None, images: ImageSet) -> int:
    """The side of a view: the given one, or the stored images' own up to 96 px and otherwise at most 224."""
    return asked or (images.size if images.size <= 96 else min(images.size, 224))


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
    """Reject settings that would have no effect, such as those of parts that the method does not have."""
    parts = {"prototypes": ("prototypes", method.assigns), "teacher": ("EMA teacher", method.ema)}
    for key in config.settings:
        name, has = parts.get(key.partition(".")[0], ("", True))
        if not has:
            raise UserError(f"--settings {key}: {config.title} has no {name}; leave it out")
    if config.backbone is not None and "encoder.backbone" in config.settings:
        raise UserError("--backbone and --settings encoder.backbone both name the encoder: keep --backbone alone")
