"""Alignments: the losses of the methods, functions of both branches' outputs.

The online branch sees V views, and the target branch the first G of them. An alignment is taken over all ordered
pairs (v, g) of an online view v and a target view g, v != g. With G = V these are all pairs of views; with local
views they are the pairs of SwAV's multi-crop loss (section 3.2) and of DINO's (eq. 3).

Shapes: V online views, G target views, B images per view, D width of both outputs, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.processes import joint_mean


class Assigned(NamedTuple):
    """What an online map gives that assigns: probabilities, and their logarithm from the same scores.

    Float32 rounds a probability below e^-103 to 0, and its logarithm is then lost, with the gradient.

    Attributes:
        probabilities: P (V, B, K).
        logs: ln P (V, B, K).
    """

    probabilities: Tensor
    logs: Tensor


@dataclass(frozen=True, slots=True)
class Alignment:
    """A loss of both branches' outputs, and the form in which it takes P.

    Args:
        loss: (P, T) -> loss.
        of_logs: whether it takes `Assigned`, if the online map returns that; otherwise it takes the probabilities.
    """

    loss: Callable[..., Tensor]
    of_logs: bool = False

    def __call__(self, online: Tensor | Assigned, target: Tensor) -> Tensor:
        """The loss of the online map's output and T."""
        return self.loss(online if self.of_logs else outputs_of(online), target)


def outputs_of(online: Tensor | Assigned) -> Tensor:
    """P as a tensor."""
    return online.probabilities if isinstance(online, Assigned) else online


def _between_views(matrix: Tensor) -> Tensor:
    """Mean of a (V, G) matrix over ordered pairs of different views."""
    views, seen = matrix.shape
    return (matrix.sum() - matrix.diagonal().sum()) / (seen * (views - 1))


def _pairs(target: Tensor) -> int:
    """The number of ordered pairs of target views, for losses that sum over pairs.

    Pairs with a local view, which the target does not see, do not count. So the loss keeps its scale, and the
    learning rate its meaning, however many local views there are.
    """
    return len(target) * (len(target) - 1) if len(target) > 1 else 1


def cosine(online: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine between views, in [-1, 1] (SimSiam, eq. 1 and 2).

    Args:
        online: (V, B, D).
        target: (G, B, D); online view v is compared with target view g for all v != g.
    """
    p, t = (F.normalize(at_least_float32(z), dim=-1) for z in (online, target))
    return -_between_views(torch.einsum("vbd,gbd->vg", p, t)) / online.shape[1]


def centred_cosine(online: Tensor, target: Tensor) -> Tensor:
    """`cosine` after subtracting each view's batch mean, so that constant directions earn nothing (RDM, eq. 2).

    The mean is taken over the joint batch of all processes.
    """
    online, target = at_least_float32(online), at_least_float32(target)
    means = [joint_mean(z.mean(1, keepdim=True)) for z in (online, target)]
    return cosine(online - means[0], target - means[1])


def regression(online: Tensor, target: Tensor) -> Tensor:
    """Squared distance between unit vectors, 2 - 2 cos, summed over ordered pairs of target views (BYOL, eq. 2).

    Local views enter into the mean over pairs, of which this is a multiple.
    """
    return _pairs(target) * (2 + 2 * cosine(online, target))


def squared(online: Tensor, target: Tensor) -> Tensor:
    """Squared distance |P - T|^2, not normalised, averaged over images and summed over pairs as in `regression`.

    With a predictor that passes gradients straight through, this is the Euclidean IsoLoss |z - sg(T + z - W z)|^2
    (Halvagal et al. 2023), and `regression` has the gradient of their cosine IsoLoss.
    """
    distances = (at_least_float32(online).unsqueeze(1) - at_least_float32(target)).square().sum(-1)  # (V, G, B)
    return _pairs(target) * _between_views(distances.mean(-1))


def cross_entropy(online: Tensor | Assigned, target: Tensor) -> Tensor:
    """Mean cross-entropy -sum T ln P between views, in nats (SwAV, eq. 2; DINO, eq. 2).

    Args:
        online: probabilities (V, B, K) with their logarithm, exact at any temperature; or probabilities alone, of
            which those below 1e-38 count as that and get no gradient.
        target: probabilities (G, B, K).
    """
    if isinstance(online, Assigned):
        logs = at_least_float32(online.logs)
    else:
        logs = at_least_float32(online).clamp_min(torch.finfo(torch.float32).tiny).log()
    return -_between_views(torch.einsum("vbk,gbk->vg", logs, at_least_float32(target))) / target.shape[1]


ALIGNMENTS: dict[str, Alignment] = {
    "cosine": Alignment(cosine),
    "centred_cosine": Alignment(centred_cosine),
    "regression": Alignment(regression),
    "squared": Alignment(squared),
    "cross_entropy": Alignment(cross_entropy, of_logs=True),
}
