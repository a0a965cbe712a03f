"""The recipe's optimiser over a model's parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import nn

from rankgap.model.branches import DualBranch
from rankgap.model.schedule import Clock
from rankgap.run.recipes import Optimizer


def parameter_groups(model: DualBranch, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Parameters by weight decay (none for biases and norms) and schedule (a predictor may keep its rate)."""
    branch = {id(p) for p in model.branch.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decays = optimizer.decay_all or p.ndim > 1
            constant = optimizer.constant_predictor_lr and id(p) not in branch
            groups.setdefault((decays, constant), []).append(p)
    return [
        {"params": p, "weight_decay": optimizer.weight_decay * decays, "constant": constant}
        for (decays, constant), p in groups.items()
    ]


def build_optimizer(model: DualBranch, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`."""
    groups = parameter_groups(model, optimizer)
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum, fused=True)
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=optimizer.lr, fused=True)
    lars: torch.optim.Optimizer = Lars(
        groups, lr=optimizer.lr, momentum=optimizer.momentum, trust_coeff=optimizer.trust, trust_clip=True
    )
    return lars


def learning_rate(optimizer: Optimizer, clock: Clock, batch_size: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine, both per step.

    Args:
        optimizer: the recipe's; its rates are for a batch of 256 and scale linearly.
        clock: the step.
        batch_size: images a step.
    """
    peak, final = optimizer.lr * batch_size / 256, optimizer.final_lr * batch_size / 256
    warmup = optimizer.warmup_epochs * clock.steps_per_epoch
    if clock.step < warmup:
        start = min(optimizer.warmup_lr, peak)
        return start + (peak - start) * clock.step / warmup
    progress = (clock.step - warmup) / max(clock.steps - warmup, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
