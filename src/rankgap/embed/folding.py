"""Batch norms of a frozen network folded into the convolutions before them: the same features in fewer passes."""

from __future__ import annotations

import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What tracing raises at a forward whose course depends on its input.
_UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, AssertionError, NotImplementedError, KeyError)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch norm that alone takes a convolution's output, in place; returns how many were folded.

    Features differ from the network's own by rounding. A network that cannot be traced stays as it is.

    Args:
        network: a network in evaluation mode, which is not trained again.
    """
    if not any(type(module) is nn.BatchNorm2d for module in network.modules()):
        return 0
    try:
        nodes = list(torch.fx.symbolic_trace(network).graph.nodes)
    except _UNTRACEABLE:
        return 0
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    folded = 0
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        convolution, norm = map(network.get_submodule, names)
        is_pair = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None
        if is_pair and all(calls.count(name) == 1 for name in names):
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            network.set_submodule(names[0], fuse_conv_bn_eval(convolution, norm))
            network.set_submodule(names[1], nn.Identity())
            folded += 1
    return folded
