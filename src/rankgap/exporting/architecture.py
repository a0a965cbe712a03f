"""The name and arguments by which timm builds an exported network, and the code of one that timm lacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import nn

from rankgap.model.backbones import create_timm, resnet_tiny, small_image_stem
from rankgap.run.saved import SavedModel

_HEAD = '''"""{about}.

Once imported, timm.create_model knows it. Needs torch and timm alone.
"""

import timm
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn


'''
_BUILD = """

def build(in_chans=3, **options):
    {build}
"""
_REGISTER = """

default_cfgs = {{"{name}": {{"num_classes": 0, "classifier": "fc"}}}}


@register_model
def {name}(pretrained=False, **options):
    return build_model_with_cfg(build, "{name}", pretrained, **options)
"""
_TINY = """network = resnet_tiny(in_chans)
    network.reset_classifier(options.get("num_classes", 0), options.get("global_pool", "avg"))
    return network"""
_SMALL = """network = timm.create_model("{backbone}", in_chans=in_chans, **options)
    return small_image_stem(network, in_chans)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What builds a network again.

    Args:
        name: timm's name of it, or the one that `file` registers; of the user's own module, its class.
        arguments: arguments of `timm.create_model`.
        about: the network in words.
        facts: what timm's own description of the model says about its layers.
        code: Python with a function `build` that takes the arguments; empty if timm has the name.
        own: the module that holds the class, if the network is the user's own.
    """

    name: str
    arguments: Mapping[str, Any]
    about: str
    facts: Mapping[str, Any]
    code: str = ""
    own: str = ""

    @property
    def file(self) -> str:
        """A Python file that registers the name with timm."""
        about = f"{self.about[:1].upper()}{self.about[1:]}"
        return _HEAD.format(about=about) + self.code + _REGISTER.format(name=self.name)


def architecture_of(kept: SavedModel, network: nn.Module, *, own: bool) -> Architecture:
    """What builds a run's network again.

    Args:
        kept: the model as the run keeps it.
        network: the network that was built from it.
        own: whether it is the user's own module.
    """
    if own:
        kind = type(network)
        about = f"a module of the user's own, {kind.__module__}.{kind.__qualname__}"
        return Architecture(name=kind.__qualname__, arguments={}, about=about, facts={}, own=kind.__module__)
    if kept.backbone == "resnet_tiny":
        about = "a ResNet of four stages of one basic block, 16 to 128 wide, for small images"
        return _registered("rankgap_resnet_tiny", kept.channels, about, _TINY, small_image_stem, resnet_tiny)
    if isinstance(network, ResNet) and isinstance(network.maxpool, nn.Identity):
        about = f"timm's {kept.backbone} with a 3x3 stride-1 first convolution and no max-pool, for small images"
        build = _SMALL.format(backbone=kept.backbone)
        return _registered(f"rankgap_{kept.backbone}_small_stem", kept.channels, about, build, small_image_stem)
    with torch.device("meta"):  # only the arguments are of interest
        described, arguments = create_timm(kept.backbone, kept.channels, kept.size)
    named = ("fixed_input_size", "first_conv", "classifier")
    facts = {name: described.pretrained_cfg.get(name) for name in named}
    facts["fixed_input_size"] = bool(facts["fixed_input_size"]) and "dynamic_img_size" not in arguments
    about = f"timm's {kept.backbone}"
    return Architecture(name=kept.backbone, arguments=arguments, about=about, facts=facts)


def _registered(name: str, channels: int, about: str, build: str, *parts: Any) -> Architecture:
    return Architecture(
        name=name,
        arguments={"in_chans": channels, "num_classes": 0},
        about=about,
        facts={"first_conv": "conv1", "classifier": "fc"},
        code="\n\n".join(map(inspect.getsource, parts)) + _BUILD.format(build=build),
    )
