"""Linear classification of frozen features.

Shapes: N rows, F feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankgap.errors import UserError, unknown
from rankgap.evaluate.accuracy import Accuracy, accuracy_of, check_labels, classes_of_both, count_classes
from rankgap.spectra.float64 import double

Solver = Literal["lbfgs", "sgd"]
BLOCK = 2**24  # logits held at once (64 MiB in float32)
CONSTANT = 1e-6  # a deviation below this share of a feature's size is rounding noise


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """scores = (x - mean) weight + bias.

    Args:
        weight: (F, K).
        bias: (K,).
        mean: (F,).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        return torch.addmm(self.bias, features.to(self.weight.dtype) - self.mean, self.weight)


def fit_lbfgs(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int | None = None,
    c: float = 0.1,
    iterations: int = 300,
    tolerance: float = 1e-4,
) -> LinearClassifier:
    """Multinomial logistic regression with an L2 penalty on standardised features, full batch.

    It minimises the mean cross-entropy + |W|_F^2 / (2 c N) over W (F, K) and an unpenalised bias, as
    scikit-learn's `LogisticRegression(C=c)` does on the output of `StandardScaler`. The minimum is unique, so the
    solver only decides how long it takes.

    L-BFGS runs in the variables V with W = Q diag(r) V and r_i = (e_i / 2 + 1 / (c N))^-1/2, where Q and e are the
    eigenvectors and eigenvalues of the features' correlation. By Boehning's bound (1992, Ann. Inst. Stat. Math.
    44, eq. 2.7), the Hessian is at most half the correlation. So the problem is well conditioned in V, however far
    the features have collapsed.

    Args:
        features: (N, F), float32 or float64; half precision is converted to float32.
        labels: (N,) int64 in 0..K-1.
        classes: K; the largest label plus one by default.
        c: inverse strength of the penalty.
        iterations: the largest number of iterations.
        tolerance: the largest entry of the gradient at which to stop.

    Raises:
        UserError: there is not one label for each row, a label is negative, or only one class occurs; or c is not
            positive.
    """
    if c <= 0:
        raise UserError(f"expected a positive c, the penalty's inverse strength, got {c:g}")
    classes = max(count_classes(features, labels), classes or 0)
    x, labels = features if features.dtype == torch.float64 else features.float(), labels.to(features.device)
    rows = len(x)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    varies = std > CONSTANT * (std**2 + mean**2).sqrt()
    x = (x - mean) * (scale := torch.where(varies, 1 / std, 0))
    energy, basis = torch.linalg.eigh(double(x.T @ x) / rows)
    penalty = 1 / (c * rows)
    to_weight = (basis * (energy.clamp_min(0) / 2 + penalty).rsqrt()).to(x)  # (F, F), W = to_weight V
    x = torch.cat([x @ to_weight, x.new_full((rows, 1), 2**0.5)], dim=1)  # (N, F + 1), with the bias
    decay = penalty * F.pad(to_weight.square().sum(0), (0, 1))  # |W|^2 = sum decay V^2: Q is orthonormal
    v = nn.Parameter(x.new_zeros(classes, x.shape[1]))
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [v],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=tolerance**2,  # of the loss, because the Hessian is at most 1 in these variables
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    step = max(BLOCK // classes, 1)
    blocks = list(zip(torch.split(x, step), torch.split(labels[None], step, dim=1), strict=True))

    @torch.no_grad()  # the gradient is explicit, because autograd would keep every block's logits
    def closure() -> float:
        gradient = decay * v
        loss = double(gradient * v).sum() / 2
        for part, label in blocks:
            # With classes first, the two products with a long thin matrix are 3 and 7 times faster on a CPU.
            logits = v @ part.T  # (K, n)
            total = logits.logsumexp(0, keepdim=True)
            loss += double(total - logits.gather(0, label)).sum() / rows
            wrong = (logits - total).exp_()  # softmax - one-hot
            wrong.scatter_add_(0, label, torch.full_like(total, -1))
            gradient += wrong @ part / rows
        v.grad = gradient
        return float(loss)

    with torch.no_grad():
        optimizer.step(closure)
        weight, bias = scale[:, None] * (to_weight @ v[:, :-1].T), 2**0.5 * v[:, -1]
    return LinearClassifier(weight, bias, mean)


def fit_sgd(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int | None = None,
    lr: float = 0.3,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> LinearClassifier:
    """A linear layer trained by SGD: momentum 0.9, no weight decay, rate times 0.1 at 60% and 80% of the epochs.

    This is the schedule of the offline probe of RDM and solo-learn, which trains for 100 epochs at batch 256 with
    steps at 60 and 80; here the features are extracted once, without augmentation.

    Args:
        features: (N, F).
        labels: (N,) int64 in 0..K-1.
        classes: K; the largest label plus one by default.
        lr: learning rate for a batch of 256; it scales linearly with the batch. The authors use 0.3 (BYOL, DINO),
            30 (SimSiam) and 0.15 (SwAV).
        epochs: passes over the rows.
        batch_size: rows per step.
        seed: of the order in which rows are drawn.

    Raises:
        UserError: the labels are invalid, as in `fit_lbfgs`; or the training diverged because the rate is too
            high.
    """
    classes = max(count_classes(features, labels), classes or 0)
    x, labels = features.float(), labels.to(features.device)
    layer = nn.Linear(x.shape[1], classes, device=x.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr * batch_size / 256, momentum=0.9, fused=True)
    steps = [round(0.6 * epochs), round(0.8 * epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for rows in torch.split(order, batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(layer(x[rows]), labels[rows]))
                optimizer.step()
            schedule.step()
    weight = layer.weight.detach().T
    if not weight.isfinite().all():
        raise UserError(f"the SGD probe diverged at lr {lr:g} on features of this scale; lower it")
    return LinearClassifier(weight, layer.bias.detach(), x.new_zeros(x.shape[1]))


def linear_probe(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    solver: Solver = "lbfgs",
    classes: int | None = None,
) -> Accuracy:
    """Accuracy on queries of a linear classifier that is trained on features.

    Args:
        features: (M, F), training features.
        labels: (M,) int64.
        queries: (N, F), test features on the same device.
        query_labels: (N,) int64.
        solver: "lbfgs" for `fit_lbfgs`, "sgd" for `fit_sgd`, each with its defaults.
        classes: K; the largest label of both sets plus one by default.

    Raises:
        UserError: the solver is unknown; there is not one label for each row; or a training label is negative, or
            only one class occurs.
    """
    check_labels(queries, query_labels)
    fits: dict[str, Callable[..., LinearClassifier]] = {"lbfgs": fit_lbfgs, "sgd": fit_sgd}
    if solver not in fits:
        raise unknown("solver", solver, fits)
    if classes is None:
        classes = classes_of_both(labels, query_labels)
    classifier = fits[solver](features, labels, classes=classes)
    block = max(BLOCK // classes, 1)
    return accuracy_of(classifier.scores, queries, query_labels, classes=classes, block=block)
