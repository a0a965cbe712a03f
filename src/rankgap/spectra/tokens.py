"""Where the variance of tokens lies: between images, between positions, or in neither alone.

The (centred) variance of tokens z[b, t] has three parts: that of the images' means, that of the positions' means,
and the rest. The first two are given as shares of the whole, in [0, 1], whose sum is at most 1. Where outputs
depend on position alone, the position share is 1. Where all positions of an image are equal, the between-image
share is 1.

The functions neither check their input nor wait for a GPU. Each holds one float64 copy of the tokens.

Shapes: B images, T tokens (positions) in each, D columns.
"""

from __future__ import annotations

from torch import Tensor

from rankgap.spectra.float64 import double


def image_means(z: Tensor) -> Tensor:
    """The mean over each image's tokens, whose effective rank is the image rank.

    Args:
        z: (B, T, D), any float dtype.

    Returns:
        (B, D), float64, no gradient.
    """
    return double(z.detach()).mean(1)


def position_share(z: Tensor) -> Tensor:
    """The share of the tokens' variance that the mean over images at each position explains, in [0, 1].

    sum_t |mean_b z[b, t] - m|^2 / T over sum_bt |z[b, t] - m|^2 / (B T), with m the mean of all tokens. Noise
    gives about 1 / B. Tokens that are all equal give NaN.

    Args:
        z: (B, T, D), any float dtype.

    Returns:
        0-d, float64, no gradient.
    """
    return _share_of_means(z, 0)


def between_image_share(z: Tensor) -> Tensor:
    """The share of the tokens' variance that each image's mean explains, in [0, 1].

    sum_b |mean_t z[b, t] - m|^2 / B over sum_bt |z[b, t] - m|^2 / (B T), with m the mean of all tokens. The
    rest, 1 less this, lies within images. Noise gives about 1 / T. Tokens that are all equal give NaN.

    Args:
        z: (B, T, D), any float dtype.

    Returns:
        0-d, float64, no gradient.
    """
    return _share_of_means(z, 1)


def _share_of_means(z: Tensor, over: int) -> Tensor:
    z = double(z.detach())
    return z.mean(over).var(0, correction=0).sum() / z.var((0, 1), correction=0).sum()
