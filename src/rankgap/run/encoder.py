"""The trained encoder of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankgap.choices import Side
from rankgap.data.given import FEW, Items, decode_item, pixels
from rankgap.data.levels import Levels
from rankgap.data.splits import Statistics
from rankgap.errors import UserError
from rankgap.evaluate.features import default_batch, device_of
from rankgap.model.backbones import Encoder, build_encoder
from rankgap.run.build import build
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.folder import RunFolder
from rankgap.run.saved import SavedRun
from rankgap.run.weights import pretrained_network
from rankgap.views import eval_view

TIMM = "timm:"  # prefix of the name of a timm model with its pretrained weights


class TrainedEncoder(nn.Module):
    """A run's encoder, which takes images as they are and returns features.

    Images are resized and normalised as in the run's evaluation. Grey images become RGB, or RGB images grey, as
    the encoder needs, and transparent pixels are blended with white. Images are processed in batches, so that
    memory does not grow with their number. No parameter requires a gradient; to fine-tune, call
    `encoder.requires_grad_()`.

    Args:
        encoder: normalised images (B, C, S, S) -> features (B, F).
        size: S, side of a view in pixels.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
        levels: how the values of deep images become 0 ... 255; None for images of 8 bits.
        centre: the side of the central square that is seen, as a share of an image's shorter side.
        tokens: give the N patch tokens of each image, or the places of its feature map, instead of one vector.
    """

    def __init__(
        self,
        encoder: Encoder,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        levels: Levels | None = None,
        *,
        centre: float = 1.0,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.size, self.centre = encoder, size, centre
        self.mean, self.std, self.levels = tuple(mean), tuple(std), levels
        self.tokens = tokens

    def forward(self, images: Any) -> Tensor:
        """Features of images: (B, F), or (F,) for a single image; tokens are (B, N, F), or (N, F).

        Args:
            images: a tensor (B, C, H, W), an array (B, H, W, C), or either without channels (B, H, W); a list or
                data set of images, which may differ in size; or one image. An image is a PIL image, a path, or an
                array or tensor (H, W), (H, W, C) or (C, H, W). Values are as in the run's images: uint8 (or uint16
                at full scale), or deep values, which the run's levels map. `data.given.channels_last` says which
                axis holds the channels.

        Raises:
            UserError: an image cannot be read or converted, or holds values of another kind; the message names it.
        """
        if single := not _is_many(images, len(self.mean)):
            images = [images]
        batch = default_batch(device_of(self))
        if self.training:  # batch norm must see the whole batch
            batch = len(images)
        read = self.encoder.tokens if self.tokens else self.encoder
        features = [read(view) for view in self._views(images, batch)]
        if not features:
            raise UserError("expected at least one image, got none")
        return features[0][0] if single else torch.cat(features)

    def _views(self, images: Any, batch: int) -> Iterator[Tensor]:
        """Normalised images (B, C, S, S), batch by batch."""
        device, channels = device_of(self), len(self.mean)
        as_it_is = self.levels is None and isinstance(images, Tensor) and images.dtype == torch.uint8
        as_it_is = as_it_is and images.shape[1:-2] == (channels,)  # it may already be on a GPU
        for start in range(0, len(images), batch):
            if not hasattr(images, "ndim"):
                part = range(start, min(start + batch, len(images)))
                yield torch.cat([self._one(images, k, device, channels) for k in part])
                continue
            stack = images[start : start + batch]
            if not as_it_is:
                stack = pixels(stack[:, None] if stack.ndim == 3 else stack, channels, self.levels)
            yield self._view(stack.to(device))

    def _one(self, images: Sequence[Any], index: int, device: torch.device, channels: int) -> Tensor:
        image = images[index]
        if isinstance(image, str | Path) or not hasattr(image, "ndim"):
            stored, sizes = decode_item(
                Items(images),
                index,
                size=self.size,
                channels=channels,
                levels=self.levels,
                centre=self.centre,
            )
            return eval_view(stored.to(device), sizes, self.size, self.mean, self.std)
        try:
            return self._view(pixels(image, channels, self.levels)[None].to(device))
        except UserError as error:
            hint = "; a stack of grey images is (B, 1, H, W)" if channels == 1 and image.ndim == 3 else ""
            raise UserError(f"image {index}: {error}{hint}") from error

    def _view(self, images: Tensor) -> Tensor:
        return eval_view(images, None, self.size, self.mean, self.std, self.centre)


def _is_many(images: Any, channels: int) -> bool:
    """Whether these are several images: a list, a data set, or a stack; (H, W) alone, or with channels, is one."""
    if not hasattr(images, "ndim"):
        return (
            not isinstance(images, str | bytes) and hasattr(images, "__len__") and hasattr(images, "__getitem__")
        )
    if images.ndim == 3:
        first, height, last = images.shape
        return not any(side <= FEW or side == channels for side in (first, last)) and last >= min(first, height)
    return bool(images.ndim == 4)


def load_encoder(
    path: str | Path,
    *,
    checkpoint: str = "last",
    branch: Side = "online",
    model: nn.Module | None = None,
    tokens: bool = False,
) -> TrainedEncoder:
    """Load the trained encoder of a run, in evaluation mode and without gradients. No data are needed.

    Args:
        path: the run folder; or timm:NAME, a timm model with its pretrained weights, whose description says how
            images are resized, cut and normalised.
        checkpoint: one of the run's checkpoints: last, best, or one like epoch-0010.
        branch: the branch whose encoder is loaded; the target's is the EMA teacher if the method has one.
        model: another instance of your own model, if the run trained one; the weights are loaded into it.
        tokens: give (B, N, F), the patch tokens of a transformer (without class token and registers) or the places
            of a feature map, row by row, instead of one vector for each image.

    Raises:
        UserError: there is no run or no such checkpoint, it is of another model, `model` is missing, or the
            network has no tokens; timm has no such weights, or they cannot be downloaded.
    """
    if str(path).startswith(TIMM):
        if checkpoint != "last" or branch != "online" or model is not None:
            raise UserError(
                f"{path} has one set of weights: leave out checkpoint, branch and model, which choose a run's"
            )
        return _of_timm(str(path).removeprefix(TIMM), tokens=tokens)
    folder = RunFolder(Path(path))
    saved = folder.saved()
    state = folder.load_checkpoint(folder.checkpoint_called(checkpoint))
    return encoder_of(saved, state, branch=branch, model=model, tokens=tokens)


def encoder_of(
    saved: SavedRun,
    state: Checkpoint,
    *,
    branch: Side = "online",
    model: nn.Module | None = None,
    tokens: bool = False,
) -> TrainedEncoder:
    """The encoder of a run that is already read; the arguments and errors are otherwise those of `load_encoder`.

    Args:
        saved: the run's configuration.
        state: one of its checkpoints.
        branch: as in `load_encoder`.
        model: as in `load_encoder`.
        tokens: as in `load_encoder`.
    """
    method = saved.method()
    kept, recipe = saved.model, saved.recipe
    encoder = build_encoder(
        kept.backbone if model is None else model, channels=kept.channels, size=kept.size, stem=kept.stem
    )
    trained = build(method, backbone=encoder, heads=recipe, views=len(recipe.views), targets=recipe.targets)
    state.load_model(trained)
    network = trained.encoder(branch)
    assert isinstance(network, Encoder)
    return _frozen(network, kept.size, kept.statistics, kept.centre, tokens=tokens)


def _of_timm(name: str, *, tokens: bool) -> TrainedEncoder:
    """A timm model with its pretrained weights, and the images that its description asks for.

    Images are always resized bicubically, and the centre is always cut out.
    """
    network = pretrained_network(name, f"{TIMM}{name}", num_classes=0)
    described = network.pretrained_cfg
    channels, size = described["input_size"][0], described["input_size"][-1]
    encoder = build_encoder(network, channels=channels, size=size)
    moments = Statistics(tuple(described["mean"]), tuple(described["std"]))
    return _frozen(encoder, size, moments, min(described["crop_pct"], 1.0), tokens=tokens)


def _frozen(network: Encoder, size: int, statistics: Statistics, centre: float, *, tokens: bool) -> TrainedEncoder:
    network.eval().requires_grad_(False)
    if tokens:  # a network without any says so now
        network.tokens(torch.zeros(1, len(statistics.mean), size, size, device=device_of(network)))
    return TrainedEncoder(network, size, *statistics, centre=centre, tokens=tokens).eval()
