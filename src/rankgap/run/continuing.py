"""Presets for continuing pretrained weights: the heads learn first, the encoder and its teacher slowly."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from rankgap.model.methods import Method
from rankgap.run.recipes import Recipe
from rankgap.run.work import Work

ENCODER_LR = 0.1  # of the heads'
LAYER_DECAY = 0.75  # of a transformer, as in MAE's and BEiT's fine-tuning
EMA_SPEED = 0.5  # of the recipe's
WARM_UP, LONGEST_WARM_UP = 0.1, 10  # share of the epochs, and epochs


def adapt(recipe: Recipe, method: Method, work: Work, network: nn.Module) -> tuple[Recipe, list[str]]:
    """A recipe for random weights, adapted to an encoder that is already good.

    Args:
        recipe: the recipe, which may be adapted to a small run already.
        method: the row it is for.
        work: the size of the run.
        network: the encoder's network.

    Returns:
        The recipe, and one sentence for each thing changed.
    """
    frozen = min(WARM_UP * work.epochs, LONGEST_WARM_UP)
    optimizer = replace(recipe.optimizer, encoder_lr=ENCODER_LR, freeze_encoder_epochs=frozen)
    notes = [
        f"the encoder's weights are frozen for {frozen:g} of {work.epochs} epochs, while the random heads learn",
        f"the encoder learns at {ENCODER_LR:g} of the heads' learning rate, to stay near its start",
    ]
    if hasattr(network, "blocks") and hasattr(network, "patch_embed"):
        optimizer = replace(optimizer, layer_decay=LAYER_DECAY)
        notes.append(f"each layer of the encoder learns at {LAYER_DECAY:g} of the rate of the layer above it")
    teacher = recipe.teacher
    if method.ema:
        # The teacher's heads are random, and must have left their start when the run ends.
        slower = min(1 - EMA_SPEED * (1 - teacher.momentum), 1 - 2 / work.steps)
        if slower > teacher.momentum:
            notes.append(
                f"EMA momentum {slower:.4f} in place of {teacher.momentum:.4f}: the teacher starts good, so it "
                "may move more slowly"
            )
            teacher = replace(teacher, momentum=slower)
    return replace(recipe, optimizer=optimizer, teacher=teacher), notes
