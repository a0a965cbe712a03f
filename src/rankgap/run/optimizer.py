"""The optimiser that a recipe asks for, over a model's parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from rankgap.errors import UserError, check_within
from rankgap.filters.formulas import LARGEST
from rankgap.filters.learned import MonotoneGain
from rankgap.model.branches import DualBranch
from rankgap.model.prototypes import Prototypes, drop_frozen_gradients
from rankgap.model.schedule import Clock, is_frozen, learning_rate, weight_decay

OptimizerName = Literal["sgd", "lars", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerOptions:
    """The optimiser and its schedules.

    Args:
        name: sgd, lars (timm's) or adamw.
        lr: peak learning rate for a batch of 256; it is scaled by batch / 256.
        weight_decay: L2 for sgd and lars, decoupled for adamw.
        final_weight_decay: weight decay at the end of a cosine over the whole run (DINO); None keeps it constant.
        momentum: momentum of sgd and lars.
        warmup_epochs: length of the linear warm-up from `warmup_lr`.
        warmup_lr: learning rate at which the warm-up starts; it is not scaled.
        final_lr: learning rate at which the cosine ends, for a batch of 256.
        decay_all: apply weight decay (and LARS's scaling) to biases and norms too.
        constant_predictor_lr: keep the predictor's learning rate at its peak (SimSiam).
        trust: LARS's coefficient eta.
        trust_clip: never let LARS raise the learning rate (LARC's clipping, as in solo-learn).
        clip: largest norm of each parameter's own gradient, as in DINO's code; 0 for no clipping.
        layer_decay: factor on the learning rate from each of the encoder's layers to the one below it.
        encoder_lr: factor on the encoder's learning rate.
        freeze_encoder_epochs: epochs at the start in which the encoder's weights are frozen, while the heads
            learn; its batch-norm statistics follow the images meanwhile.
    """

    name: OptimizerName = "sgd"
    lr: float
    weight_decay: float = 1e-5
    final_weight_decay: float | None = None
    momentum: float = 0.9
    warmup_epochs: float = 10
    warmup_lr: float = 3e-5
    final_lr: float = 0.0
    decay_all: bool = False
    constant_predictor_lr: bool = False
    trust: float = 0.02
    trust_clip: bool = True
    clip: float = 0.0
    layer_decay: float = 1.0
    encoder_lr: float = 1.0
    freeze_encoder_epochs: float = 0.0

    def __post_init__(self) -> None:
        rates = ["lr", "weight_decay", "warmup_lr", "final_lr", "trust", "clip", "encoder_lr"]
        if self.final_weight_decay is not None:
            rates.append("final_weight_decay")
        check_within(self, **dict.fromkeys(rates, (0, LARGEST)), momentum=(0, 1), layer_decay=(0, 1))
        check_within(self, **dict.fromkeys(("warmup_epochs", "freeze_encoder_epochs"), (0, math.inf)))

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
    """Parameters by weight decay and by learning rate, both at their peak; `set_rates` sets them at each step.

    Biases and norms do not decay unless the recipe says so. A learned gain never decays, because a gain of 0 is no
    simpler than another. A predictor may keep its rate; the encoder, and each of its layers, may have their own.
    LARS scales the groups that decay, even with a decay of 0. Prototypes and the encoder, which may be frozen at
    first, have groups of their own: fused SGD needs all parameters of a group to begin at the same step.

    Raises:
        UserError: a layer decay for an encoder whose layers are not known.
    """
    branch = {id(p) for p in model.online.parameters()}
    gains = {id(p) for m in model.modules() if isinstance(m, MonotoneGain) for p in m.parameters()}
    prototypes = {id(m.weight) for m in model.modules() if isinstance(m, Prototypes)}
    encoder = _encoder_scales(model, options)
    groups: dict[tuple[bool, bool, bool, float | None], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decays = p.ndim > 1 or (options.decay_all and id(p) not in gains)
            constant = options.constant_predictor_lr and id(p) not in branch
            groups.setdefault((decays, constant, id(p) in prototypes, encoder.get(id(p))), []).append(p)
    return [
        {
            "params": p,
            "lr": options.lr * (1.0 if scale is None else scale),
            "weight_decay": options.weight_decay if decays else 0.0,
            "frozen": scale is not None and options.freeze_encoder_epochs > 0,
            "decays": decays,
            "always_adapt": decays,  # LARS's word for it; by itself, timm's scales a group only where it decays
            "constant": constant,
            "scale": 1.0 if scale is None else scale,
            "encoder": scale is not None,
        }
        for (decays, constant, _, scale), p in groups.items()
    ]


def _encoder_scales(model: DualBranch, options: OptimizerOptions) -> dict[int, float]:
    """The factor on the learning rate of each of the encoder's parameters, by its id.

    It is empty for an encoder that is trained like the rest: they share groups, as in runs of earlier releases.
    """
    if (options.layer_decay, options.encoder_lr, options.freeze_encoder_epochs) == (1, 1, 0):
        return {}
    encoder = model.online.encoder
    if options.layer_decay == 1:
        return {id(p): options.encoder_lr for p in encoder.parameters()}
    from timm.optim import param_groups_layer_decay  # see build_optimizer

    network = getattr(encoder, "network", encoder)
    if not hasattr(network, "group_matcher"):
        raise UserError(
            f"optimizer.layer_decay: {type(network).__name__} does not say which layers it has, as timm's models "
            f"do; leave it out"
        )
    return {
        id(p): options.encoder_lr * group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=options.layer_decay)
        for p in group["params"]
    }


def set_rates(optimizer: torch.optim.Optimizer, options: OptimizerOptions, clock: Clock, batch_size: int) -> None:
    """Set each group's learning rate and weight decay, and whether it is frozen; call it before each step."""
    peak, rate = options.peak(batch_size), options.rate(clock, batch_size)
    final = options.weight_decay if options.final_weight_decay is None else options.final_weight_decay
    decay = weight_decay(clock, options.weight_decay, final)
    frozen = is_frozen(clock, options.freeze_encoder_epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * (peak if group["constant"] else rate)
        group["weight_decay"] = decay if group["decays"] else 0.0
        group["frozen"] = frozen and group["encoder"]


def ready_gradients(optimizer: torch.optim.Optimizer, model: DualBranch, options: OptimizerOptions) -> None:
    """Drop the gradients of what is frozen, and clip the others; call it between backward and the step.

    Without a gradient, neither weight decay nor momentum moves a parameter. A hook of the optimiser's own would
    come too early: Lightning computes the gradients within its step.
    """
    if model.online.prototypes is not None:  # else each step would look for them
        drop_frozen_gradients(model)
    for group in optimizer.param_groups:
        if group["frozen"]:
            for p in group["params"]:
                p.grad = None
    if options.clip:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        factors = (options.clip / (norms + 1e-6)).clamp(max=1.0)  # torch.nn.utils.clip_grad_norm_'s, for each
        torch._foreach_mul_(grads, list(factors.unbind()))


def build_optimizer(model: DualBranch, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`; call `ready_gradients` before each of its steps."""
    groups = parameter_groups(model, options)
    fused = not options.clip  # a fused optimiser in 16 bits unscales gradients itself, after they were clipped
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=fused)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, fused=fused)
    from timm.optim.lars import Lars  # a command that only reads a run must not wait for timm

    lars: torch.optim.Optimizer = Lars(
        groups,
        lr=options.lr,
        momentum=options.momentum,
        trust_coeff=options.trust,
        trust_clip=options.trust_clip,
    )
    return lars


def state_names(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> set[str]:
    """The names of an optimiser's state of a group's parameters, once it has seen their gradients."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if group["momentum"] else set()
