"""BatchNorm over tokens whose training statistics are those of all processes' tokens, on any device."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from ...errors import VitfrostError


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients, so it belongs to the sum of their losses."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def world_size() -> int:
    """Number of processes in torch's default group, 1 where there is none."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class TokenBatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d over [tokens, channels], with the same state; alone, or in eval mode, it is exactly that.

    In training mode with several processes in torch's default group (gloo or NCCL, CPU or not), mean and variance are those of the
    tokens of all processes, which may differ in number. Gradients are those of the sum of all processes' losses, so the average that
    DistributedDataParallel takes is the gradient of the mean loss over one joined batch. One collective each way.
    Statistics are at least float32. Raises VitfrostError for a training batch of fewer than two tokens in all.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels, eps, momentum)

    def forward(self, x: Float[Tensor, "tokens channels"]) -> Float[Tensor, "tokens channels"]:
        if self.training and world_size() > 1:
            return self._over_processes(x)
        if self.training:
            _check_tokens(len(x))
        return super().forward(x)

    def _over_processes(self, x: Float[Tensor, "tokens channels"]) -> Float[Tensor, "tokens channels"]:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count, mean, squares = global_moments(values)
        if len(x) < 2:  # only then can it be too few in all, and only then is it worth waiting for the device
            _check_tokens(int(count))
        variance = squares / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((squares / (count - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias, values - mean, scale).to(x.dtype)


def global_moments(
    values: Float[Tensor, "tokens channels"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Number of tokens in all processes, their mean, and the sum of the squares of their differences from it (differentiable).

    Every process computes its own mean and centered squares; these are combined after Chan, Golub and LeVeque (1983), which does not
    cancel as E[x^2] - E[x]^2 does. The processes' numbers travel as one sum of tables in which each fills its own row.
    """
    tokens, channels = values.shape
    if tokens:
        variance, mean = torch.var_mean(values, 0, correction=0)
        own = torch.cat([values.new_full((1,), tokens), mean, tokens * variance])
    else:
        own = torch.cat([values.new_zeros(1), values.sum(0), values.sum(0)])
    row = torch.arange(world_size(), device=values.device) == distributed.get_rank()
    table = SumOverProcesses.apply(torch.outer(row.to(own), own))
    counts, means, squares = table[:, :1], table[:, 1 : channels + 1], table[:, channels + 1 :]
    count = counts.sum()
    overall = (counts * means).sum(0) / count
    return count, overall, (squares + counts * (means - overall).square()).sum(0)


def _check_tokens(count: int) -> None:
    if count < 2:
        given = "one token" if count else "no tokens"
        raise VitfrostError(f"a training batch of {given} has no variance for BatchNorm; give more tokens, or set norm to none")
