"""Colour jitter as one affine map per image.

Brightness b, contrast c, saturation s, hue shift t and grey, in this order, are all affine in colour. With
G = 1 luma^T the projection on grey and Q a quarter turn of the chroma plane of YIQ (so G Q = Q G = 0) they are

    x -> b c (G + s (cos t (I - G) + sin t Q)) x + (1 - c) b m,    s = 0 where the image is made grey,

with m the mean of luma^T x over the image: brightness scales it, saturation and hue keep it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # FCC 1953; Y is PIL's grey


def colour_basis(channels: int) -> tuple[Tensor, Tensor]:
    """Luma weights (C,) and the three matrices (3, C, C) that every colour matrix is a sum of, in float64.

    For three channels: to grey, G = 1 luma^T; to chroma, I - G; a turn of a quarter in the chroma plane of YIQ.
    Other channels have no chroma: their matrices are I, 0, 0, and luma is their mean.
    """
    identity = torch.eye(channels, dtype=torch.float64)
    if channels != 3:
        return identity.mean(0), torch.stack([identity, 0 * identity, 0 * identity])
    yiq = torch.tensor(_YIQ, dtype=torch.float64)
    # Hue grows from red to green, against the sense of (I, Q).
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    grey = yiq[0].expand(3, 3)
    return yiq[0], torch.stack([grey, identity - grey, torch.linalg.inv(yiq) @ turn @ yiq])


def mixture(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, grey: Tensor) -> Tensor:
    """How much of each basis matrix makes an image's: (..., 3) for parameters (...), hue in turns, grey bool."""
    gain = brightness * contrast
    chroma = gain * torch.where(grey, 0.0, saturation)
    angle = hue * (2 * math.pi)
    return torch.stack([gain, chroma * angle.cos(), chroma * angle.sin()], -1)
