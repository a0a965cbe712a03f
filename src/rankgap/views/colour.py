"""Colour jitter as one affine map per image.

Brightness b, contrast c, saturation s, hue shift t and grey, in this order, are all affine in colour: with the
projection on grey G = 1 luma^T, and R the rotation by 2 pi t about the grey axis 1, they are

    x -> b c ((1 - s) G + s R) x + (1 - c) b m,    with G in front of the matrix where the image is made grey;

m, the mean of luma^T x over the image, is scaled by brightness and kept by contrast.

torchvision shifts hue in HSV, which keeps the largest channel and is not linear. The rotation keeps the mean of
the channels. At t = 0.1, on CIFAR-10, they differ by 0.016 on average, where the shift itself changes pixels by
0.025; a rotation in YIQ, which keeps luma, would differ by 0.027.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL


def luma_weights(channels: int) -> Tensor:
    """Weights (C,) of an image's grey: luma of three channels, the mean of any other number."""
    return torch.tensor(_LUMA) if channels == 3 else torch.full((channels,), 1 / channels)


def colour_basis(channels: int) -> Tensor:
    """What colour matrices are sums of, as (4, C*C): to luma, to the channels' mean, identity, quarter turn.

    Other than three channels have no hue or saturation: any sum that leaves brightness alone is the identity.
    """
    identity = torch.eye(channels)
    if channels != 3:
        return torch.stack([identity, identity, identity, 0 * identity]).flatten(1)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # red to green: hue grows
    return torch.stack([luma_weights(3).expand(3, 3), torch.full((3, 3), 1 / 3), identity, turn]).flatten(1)


def colour_matrices(
    basis: Tensor, luma: Tensor, gain: Tensor, saturation: Tensor, hue: Tensor, grey: Tensor
) -> Tensor:
    """The matrix of each image.

    Args:
        basis: (4, C*C), from `colour_basis`.
        luma: (C,), from `luma_weights`.
        gain: (V, B), brightness times contrast.
        saturation: (V, B), factor.
        hue: (V, B), shift in turns.
        grey: bool (V, B).

    Returns:
        (V, B, C, C)
    """
    cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
    parts = torch.stack([1 - saturation, saturation * (1 - cos), saturation * cos, saturation * sin], -1)
    matrices = ((gain[..., None] * parts) @ basis).view(*gain.shape, *2 * luma.shape)
    if len(luma) != 3:
        return matrices
    return torch.where(grey[..., None, None], (luma @ matrices)[..., None, :], matrices)
