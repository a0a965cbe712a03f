"""Multi-layer perceptrons, and how a module takes views.

Shapes: V views, B images per view, D embedding width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankgap.errors import UserError, check_within

OutputNorm = Literal["none", "batch", "batch_affine"]

Activation = Literal["relu", "gelu"]
WIDEST, DEEPEST = 2**17, 64  # width of a layer, and number of layers; more would not fit into memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorOptions:
    """The projector's layers.

    Args:
        widths: widths of the layers, output last.
        norm: batch norm in the hidden layers.
        output_norm: what follows the last layer: nothing, or batch norm without or with an affine map.
        activation: activation between the layers.
    """

    widths: tuple[int, ...]
    norm: bool = True
    output_norm: OutputNorm = "none"
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"widths: a projector needs one layer or more, each 1 wide or more, got {self.widths}")
        check_widths(self, self.widths)


def check_widths(options: object, widths: tuple[int, ...]) -> None:
    """Raise `UserError` if the `widths` of options are too large for any machine."""
    if len(widths) > DEEPEST:
        raise UserError(f"widths: expected at most {DEEPEST} layers, got {len(widths)}")
    check_within(options, widths=(1, WIDEST))


def mlp(
    dims: Sequence[int],
    *,
    norm: bool = True,
    output_norm: OutputNorm = "none",
    activation: Activation = "relu",
) -> nn.Sequential:
    """A multi-layer perceptron (N, dims[0]) -> (N, dims[-1]): the projector and predictor of every method.

    Args:
        dims: widths, input first; two or more.
        norm: batch norm before each hidden activation (the linear layer then has no bias).
        output_norm: what follows the last layer: nothing, or batch norm without or with an affine map.
        activation: activation between layers, never after the last.

    Raises:
        UserError: fewer than two widths.
    """
    if len(dims) < 2:
        raise UserError(f"an MLP needs an input and an output width, got {list(dims)}")
    activations: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "gelu": nn.GELU}
    layers: list[nn.Module] = []
    for width_in, width in itertools.pairwise(dims[:-1]):
        layers.append(nn.Linear(width_in, width, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(activations[activation]())
    layers.append(nn.Linear(dims[-2], dims[-1], bias=output_norm == "none"))
    if output_norm != "none":
        layers.append(nn.BatchNorm1d(dims[-1], affine=output_norm == "batch_affine"))
    return nn.Sequential(*layers)


def mixes_images(module: nn.Module) -> bool:
    """Whether a module uses statistics of a batch in training, that is, whether it contains batch norm."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def per_view(module: nn.Module, views: Tensor | Sequence[Tensor]) -> Tensor:
    """Views (V, B, ...), or a list of views that may differ in size -> (V, B, ...).

    Batch norm sees one view at a time (SimSiam, BYOL). Without it, neighbouring views of one size pass together:
    the same numbers in one forward pass.
    """
    if mixes_images(module):
        return torch.stack([module(view) for view in views])
    if isinstance(views, Tensor):
        flat: Tensor = module(views.flatten(0, 1))
        together: Tensor = flat.unflatten(0, views.shape[:2])
        return together
    runs = [list(run) for _, run in itertools.groupby(views, lambda view: view.shape)]
    made = [part for run in runs for part in module(torch.cat(run)).chunk(len(run))]
    return torch.stack(made)


class PerView(nn.Module):
    """Applies a module to each view separately; see `per_view`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> (V, B, D')."""
        return per_view(self.module, z)
