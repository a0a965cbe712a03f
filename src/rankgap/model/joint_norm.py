"""Batch norm over the joint batch of all processes.

Shapes: N rows of this process, C channels, `...` places of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.processes import joint_sum, world_size


class JointBatchNorm(_BatchNorm):
    """A batch norm that takes its statistics from all processes, on any device (torch's own needs CUDA).

    Values, gradients and running statistics are those of one process with the joint batch. It takes over the
    parameters and buffers of a norm under their names, so that states are exchanged freely.

    Args:
        norm: the norm that it stands for; one of timm's goes on to its activation.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions goes."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        y = self._joint(x) if self.training and world_size() > 1 else super().forward(x)
        out: Tensor = self.act(self.drop(y))
        return out

    def _joint(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z = at_least_float32(x)
            others = [d for d in range(x.ndim) if d != 1]
            of_channel = [-1, *[1] * (x.ndim - 2)]
            sums = joint_sum(torch.cat([z.sum(others), z.new_tensor([z.numel() / z.shape[1]])]))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            z = z - mean.view(of_channel)
            var = joint_sum(z.square().sum(others)) / count
            self._follow(mean.detach(), var.detach() * count / (count - 1))
            scale = (var + self.eps).rsqrt()
            y = z * (scale if self.weight is None else scale * self.weight).view(of_channel)
            if self.bias is not None:
                y = y + self.bias.view(of_channel)
            return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(var.to(self.running_var), share)


def join_norms(model: nn.Module, *, cuda: bool) -> None:
    """Put a synchronised batch norm in the place of every batch norm below a module.

    Args:
        model: changed in place; parameters, buffers and their names stay.
        cuda: it will run on CUDA, where torch's own is faster.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm | JointBatchNorm):
                # torch's conversion would drop the activation that some of timm's norms hold.
                torchs = cuda and not hasattr(child, "act")
                joint = nn.SyncBatchNorm.convert_sync_batchnorm(child) if torchs else JointBatchNorm(child)
                for hook in child._forward_pre_hooks.values():  # Encoder.checkpoint_gradients has one
                    joint.register_forward_pre_hook(hook)
                module.add_module(name, joint)
