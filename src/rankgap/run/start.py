"""Starting an encoder from pretrained weights, and saying what of them was used."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import adapt_input_conv
from timm.models.resnet import ResNet
from torch import Tensor, nn

from rankgap.data.names import said, shown
from rankgap.data.splits import Moments
from rankgap.errors import UserError
from rankgap.model.backbones import SMALL_IMAGE, Encoder, build_encoder, check_backbone, own_name
from rankgap.model.encoder_options import Stem
from rankgap.run.config import TrainConfig
from rankgap.run.recipes import Recipe
from rankgap.run.weights import Weights, find_weights

_NAMED = 4  # tensors that a message names before it counts the others
_AVERAGED = ("teacher", "state_dict_ema", "model_ema")  # preferred: publications score the averaged weights
_COUNTS = "num_batches_tracked"  # of batch norm; torch itself does without it in old files


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """What a run's encoder is before training: random, the user's own, or pretrained.

    Args:
        encoder: the encoder.
        stem: the stem that pretrained weights need, where it is not the one for the views' size.
        moments: the mean and standard deviation that the weights were trained with; None for the images' own.
        notes: of pretrained weights, what was loaded, missing and left over, one sentence each.
    """

    encoder: Encoder
    stem: Stem = "auto"
    moments: Moments | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The part of some weights that names an encoder's tensors.

    Attributes:
        key: its key in the file.
        prefix: what stands before an encoder's names.
        state: tensors by the encoder's names.
        others: names without the prefix.
    """

    key: str
    prefix: str
    state: dict[str, Tensor]
    others: list[str]

    @property
    def place(self) -> str:
        """Key and prefix, in brackets, where there are any."""
        parts = [f"{what} {name}" for what, name in (("key", self.key), ("prefix", self.prefix)) if name]
        return f" ({', '.join(parts)})" if parts else ""


def choose_backbone(
    config: TrainConfig, recipe: Recipe, device: torch.device, own: nn.Module | None
) -> tuple[str, Weights | None]:
    """The name of the encoder, and the weights that it starts from, if any.

    The encoder is the user's own, or the one that the user names, that the weights are of, that the recipe names,
    or that suits the device.

    Raises:
        UserError: there is no such encoder, or no such weights.
    """
    if own is not None:
        if config.init is not None:
            raise UserError("init: a model of your own starts from the weights that it has; leave init out")
        return own_name(own), None
    default = "resnet_tiny" if device.type == "cpu" else "resnet18"
    backbone = config.backbone or recipe.encoder.backbone or default
    weights = None if config.init is None else find_weights(config.init, backbone)
    if weights is not None and (config.backbone is None or config.init == "timm"):
        backbone = weights.backbone or backbone  # without the tag that names timm's weights
    check_backbone(backbone)
    return backbone, weights


def start_from(
    weights: Weights, backbone: str, *, channels: int, size: int, partial: bool = False, **options: Any
) -> Start:
    """Build an encoder by name and load pretrained weights into it, batch-norm statistics included.

    Position embeddings and the like are fitted to the view's size by timm's own conversion of the architecture,
    and the first convolution from 3 channels to the images' by timm's rule (`adapt_input_conv`).

    Args:
        weights: the weights.
        backbone: the encoder's name.
        channels: channels of an image.
        size: side of a view in pixels.
        partial: keep random weights where the file has none that fit, instead of raising an error.
        options: further options of `build_encoder`.

    Raises:
        UserError: the backbone cannot be built, or the weights do not fit it; the message says which.
    """
    encoder = build_encoder(backbone, channels=channels, size=size, **options)
    chosen, notes = _choose(weights, encoder.network.state_dict().keys()), []
    stem = _stem_of(chosen.state, encoder.network)
    if stem != "auto":
        encoder = build_encoder(backbone, channels=channels, size=size, stem=stem, **options)
        notes.append(_said_of(stem, size))
    network = encoder.network
    expected = network.state_dict()
    state = _converted(chosen.state, network, weights)
    _adapt_channels(state, network, channels, weights)
    wanted = [name for name in expected if not name.endswith(_COUNTS)]
    misfits = {name: why for name in wanted if (why := _misfit(state.get(name), expected[name]))}
    if misfits and (not partial or _is_another(misfits, wanted)):
        raise UserError(_refusal(weights, backbone, misfits, wanted))
    network.load_state_dict(
        {n: each for n, each in state.items() if n in expected and n not in misfits}, strict=False
    )
    loaded = (
        f"{len(wanted) - len(misfits)} of {len(wanted)} tensors of the encoder from {weights.place}{chosen.place}"
    )
    if misfits:
        loaded += f"; random: {_listed(misfits)}"
    if left := [*(f"{chosen.prefix}{name}" for name in state if name not in expected), *chosen.others]:
        loaded += f"; left over: {_listed(left)}"
    moments = _moments(weights, channels)
    whose = "their" if moments is None else "the weights'"
    notes.append(f"images are normalised with {whose} own mean and standard deviation")
    return Start(encoder=encoder, stem=stem, moments=moments, notes=(shown(loaded), *notes))


def _choose(weights: Weights, names: Iterable[str]) -> _Chosen:
    """The dictionary and the prefix under which most of an encoder's names are found."""
    wanted, counts = set(names), Counter[tuple[str, str]]()
    for key, state in weights.states.items():
        for name in state:
            parts = name.split(".")
            for i in range(len(parts)):
                if ".".join(parts[i:]) in wanted:
                    counts[key, ".".join([*parts[:i], ""]) if i else ""] += 1
    # Without any, timm's conversion of the architecture may know the names.
    by_size = max(weights.states, key=lambda key: len(weights.states[key]), default="")
    key, prefix = max(counts, key=lambda each: (counts[each], each[0] in _AVERAGED), default=(by_size, ""))
    state = weights.states.get(key, {})
    return _Chosen(
        key,
        prefix,
        {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)},
        [name for name in state if not name.startswith(prefix)],
    )


def _stem_of(state: Mapping[str, Tensor], network: nn.Module) -> Stem:
    """The stem of a ResNet's weights where the network has the other one; otherwise auto."""
    weight = state.get("conv1.weight")
    if not isinstance(network, ResNet) or not isinstance(network.conv1, nn.Conv2d) or weight is None:
        return "auto"
    if weight.ndim != 4 or weight.shape[-1] == network.conv1.kernel_size[0]:
        return "auto"
    return "small" if weight.shape[-1] == 3 else "own"


def _said_of(stem: Stem, size: int) -> str:
    if stem == "small":
        return f"the 3x3 stem of the weights is kept: they were trained on images under {SMALL_IMAGE} px"
    return (
        f"the stem of the weights is kept: with its max-pool it reduces views of {size} px to a quarter; "
        f"--size {SMALL_IMAGE} or more shows the network more of them"
    )


def _converted(state: dict[str, Tensor], network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The state in the network's names and sizes, by the conversion that timm keeps beside the architecture."""
    convert: Any = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about timm's code
            return dict(convert(dict(state), network))
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"--init: {weights.place} does not fit a {type(network).__name__}: timm cannot convert it "
            f"({type(error).__name__}: {said(error)}); choose the --backbone of the weights"
        ) from error


def _adapt_channels(state: dict[str, Tensor], network: nn.Module, channels: int, weights: Weights) -> None:
    """Fit the first convolution to the images' channels, in place."""
    first = getattr(network, "pretrained_cfg", {}).get("first_conv") or "conv1"
    for name in (f"{conv}.weight" for conv in ([first] if isinstance(first, str) else first)):
        have, want = state.get(name), dict(network.named_parameters()).get(name)
        if have is None or want is None or have.ndim != 4 or have.shape[1] == want.shape[1]:
            continue
        if have.shape[0] != want.shape[0] or have.shape[2:] != want.shape[2:]:
            continue  # another architecture, which is said with the other shapes
        came = have.shape[1]
        if came != 3 or want.shape[1] != channels:
            both = {came, channels} <= {1, 3}
            raise UserError(
                f"--init: {weights.place} takes {came}-channel images, these are {channels}-channel, and timm "
                f"converts only weights of 3: use {f'--channels {came}' if both else f'{came}-channel images'}"
            )
        state[name] = adapt_input_conv(channels, have)


def _misfit(have: Tensor | None, want: Tensor) -> str:
    """Why a tensor cannot take another's place; empty if it can."""
    if have is None:
        return "missing"
    if have.shape != want.shape:
        return f"{tuple(have.shape)}, not {tuple(want.shape)}"
    if not have.is_floating_point():
        return f"of type {str(have.dtype).removeprefix('torch.')}"
    return "" if bool(have.float().isfinite().all()) else "not finite"


def _is_another(misfits: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether so little fits that the weights must be of another architecture: names may agree by chance."""
    return 2 * len(misfits) > len(wanted)


def _refusal(weights: Weights, backbone: str, misfits: Mapping[str, str], wanted: Sequence[str]) -> str:
    """Why weights cannot start an encoder, and what to do."""
    listed = _listed([f"{name} is {why}" for name, why in misfits.items()])
    count = f"{len(misfits)} of the {len(wanted)} tensors of {backbone}"
    why_not = f"--init: {weights.place} does not fit {count} ({listed})"
    known = f" ({weights.backbone})" if weights.backbone not in (None, backbone) else ""
    if _is_another(misfits, wanted):
        return f"{why_not}: it is another architecture{known}; choose its --backbone"
    return f"{why_not}; choose the --backbone of the weights{known}, or start these at random with --init-partial"


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    first = list(names)
    more = len(first) - _NAMED
    return ", ".join(first[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _moments(weights: Weights, channels: int) -> Moments | None:
    """The mean and standard deviation that weights were trained with, for images of so many channels.

    Grey images take the means over the channels. None if the weights bring no numbers that apply.
    """
    mean, std = weights.mean, weights.std
    if mean is None or std is None:
        return None
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return (mean, std) if len(mean) == channels else None
