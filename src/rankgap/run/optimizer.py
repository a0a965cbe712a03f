"""The optimiser that a recipe asks for, over a model's parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from rankgap.errors import check_within
from rankgap.filters.formulas import LARGEST
from rankgap.filters.learned import MonotoneGain
from rankgap.model.branches import DualBranch
from rankgap.model.prototypes import Prototypes, drop_frozen_gradients
from rankgap.model.schedule import Clock, learning_rate

OptimizerName = Literal["sgd", "lars", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerOptions:
    """The optimiser and its learning-rate schedule.

    Args:
        name: sgd, lars (timm's) or adamw.
        lr: peak learning rate for a batch of 256; it is scaled by batch / 256.
        weight_decay: L2 for sgd and lars, decoupled for adamw.
        momentum: momentum of sgd and lars.
        warmup_epochs: length of the linear warm-up from `warmup_lr`.
        warmup_lr: learning rate at which the warm-up starts; it is not scaled.
        final_lr: learning rate at which the cosine ends, for a batch of 256.
        decay_all: apply weight decay (and LARS's scaling) to biases and norms too.
        constant_predictor_lr: keep the predictor's learning rate at its peak (SimSiam).
        trust: LARS's coefficient eta.
    """

    name: OptimizerName = "sgd"
    lr: float
    weight_decay: float = 1e-5
    momentum: float = 0.9
    warmup_epochs: float = 10
    warmup_lr: float = 3e-5
    final_lr: float = 0.0
    decay_all: bool = False
    constant_predictor_lr: bool = False
    trust: float = 0.02

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "weight_decay", "warmup_lr", "final_lr", "trust"), (0, LARGEST))
        check_within(self, **rates, momentum=(0, 1), warmup_epochs=(0, math.inf))

    def peak(self, batch_size: int) -> float:
        """The peak learning rate for a batch size."""
        return self.lr * batch_size / 256

    def rate(self, clock: Clock, batch_size: int) -> float:
        """The learning rate of a step for a batch size."""
        return learning_rate(
            clock,
            peak=self.peak(batch_size),
            final=self.final_lr * batch_size / 256,
            warmup_epochs=self.warmup_epochs,
            warmup_from=self.warmup_lr,
        )


def parameter_groups(model: DualBranch, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Parameters by weight decay and by schedule.

    Biases and norms do not decay unless the recipe says so. A learned gain never decays, because a gain of 0 is no
    simpler than another. A predictor may keep its rate. LARS scales the groups that decay, even with a decay of 0.
    Prototypes have a group of their own: fused SGD needs all parameters of a group to begin at the same step.
    """
    branch = {id(p) for p in model.online.parameters()}
    gains = {id(p) for m in model.modules() if isinstance(m, MonotoneGain) for p in m.parameters()}
    prototypes = {id(m.weight) for m in model.modules() if isinstance(m, Prototypes)}
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decays = p.ndim > 1 or (options.decay_all and id(p) not in gains)
            constant = options.constant_predictor_lr and id(p) not in branch
            groups.setdefault((decays, constant, id(p) in prototypes), []).append(p)
    return [
        {
            "params": p,
            "weight_decay": options.weight_decay if decays else 0.0,
            "constant": constant,
            "always_adapt": decays,  # LARS's word for it; by itself, timm's scales a group only where it decays
        }
        for (decays, constant, _), p in groups.items()
    ]


def build_optimizer(model: DualBranch, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups`; its steps leave frozen prototypes where they are."""
    optimizer = _optimizer(parameter_groups(model, options), options)
    if any(isinstance(module, Prototypes) for module in model.modules()):  # else each step would look for them
        optimizer.register_step_pre_hook(lambda *_: drop_frozen_gradients(model))
    return optimizer


def state_names(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> set[str]:
    """The names of an optimiser's state of a group's parameters, once it has seen their gradients."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if group["momentum"] else set()


def _optimizer(groups: list[dict[str, Any]], options: OptimizerOptions) -> torch.optim.Optimizer:
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=True)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, fused=True)
    from timm.optim.lars import Lars  # a command that only reads a run must not wait for timm

    lars: torch.optim.Optimizer = Lars(
        groups, lr=options.lr, momentum=options.momentum, trust_coeff=options.trust, trust_clip=True
    )
    return lars
