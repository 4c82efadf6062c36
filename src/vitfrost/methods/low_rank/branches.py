"""A linear layer as a sum of parallel branches while it is trained, and one matrix afterwards (re-parameterization).

Shapes: T tokens, K branches, i inputs, o outputs.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.methods import Norm
from ...errors import VitfrostError
from .batch_norm import TokenBatchNorm

Kind = Literal["linear", "expand", "mean"]


def mean_matrix(inputs: int, outputs: int) -> Float[Tensor, "outputs inputs"]:
    """The identity between two widths: channels are averaged in groups, or repeated where there are more outputs."""
    wide, narrow = max(inputs, outputs), min(inputs, outputs)
    group = torch.arange(wide) * narrow // wide
    member = F.one_hot(group, narrow).to(torch.get_default_dtype())
    return member if outputs == wide else (member / member.sum(0)).T


class Branch(nn.Module):
    """One linear map without bias, then a BatchNorm over tokens (or a plain bias, or nothing).

    kind: `linear`: one weight. `expand`: two with `inner` channels between them. `mean`: a fixed average or repetition of channels.
    """

    average: Tensor

    def __init__(self, inputs: int, outputs: int, kind: Kind, norm: Norm, bias: bool, inner: int):
        super().__init__()
        widths = {"linear": [inputs, outputs], "expand": [inputs, inner, outputs], "mean": []}[kind]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in pairwise(widths))
        if kind == "mean":
            self.register_buffer("average", mean_matrix(inputs, outputs), persistent=False)
        self.norm = TokenBatchNorm(outputs) if norm == "batch" else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if norm == "none" and bias else None

    def forward(self, x: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        for layer in self.layers:
            x = layer(x)
        if not len(self.layers):
            x = F.linear(x, self.average)
        x = x if self.norm is None else self.norm(x)
        return x if self.bias is None else x + self.bias

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """The linear map before the norm, in float64."""
        if not len(self.layers):
            return self.average.double()
        first, *rest = [layer.get_parameter("weight").double() for layer in self.layers]
        for weight in rest:
            first = weight @ first
        return first

    def affine(self) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
        """diag(s) W and beta - s mu with s = gamma / sqrt(var + eps) of the norm (or W and the plain bias), in float64."""
        matrix = self.matrix()
        if self.norm is None:
            return matrix, matrix.new_zeros(len(matrix)) if self.bias is None else self.bias.double()
        scale = self.norm.weight.double() / (self.norm.running_var.double() + self.norm.eps).sqrt()
        return scale[:, None] * matrix, self.norm.bias.double() - scale * self.norm.running_mean.double()

    @torch.no_grad()
    def set_matrix(self, target: Float[Tensor, "outputs inputs"], generator: torch.Generator) -> None:
        """Make the linear map `target`; an expanded one goes through a drawn orthonormal basis, so that its parts differ."""
        weights = [layer.get_parameter("weight") for layer in self.layers]
        if len(weights) == 1:
            weights[0].copy_(target)
            return
        outputs, inputs = target.shape
        inner, narrow = len(weights[0]), min(outputs, inputs)
        basis = torch.linalg.qr(torch.randn(inner, narrow, generator=generator, dtype=torch.float64))[0].to(target.device)
        first, second = (basis @ target, basis.T) if outputs == narrow else (basis, target @ basis.T)
        weights[0].copy_(first)
        weights[1].copy_(second)

    @torch.no_grad()
    def set_statistics(self, mean: Float[Tensor, " outputs"], variance: Float[Tensor, " outputs"], passes: bool) -> None:
        """Give the norm the statistics of its input, and scale and shift so that it passes it on as it is (or not at all)."""
        if self.norm is None:
            return
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)
        self.norm.weight.copy_((variance + self.norm.eps).sqrt() if passes else torch.zeros_like(variance))
        self.norm.bias.copy_(mean if passes else torch.zeros_like(mean))


class ParallelLinear(nn.Module):
    """The sum of K parallel branches, and of a fixed average of channels where `identity` is set.

    `expand`: branches have two weights each, with twice as many channels as the layer's narrow side between them.
    Raises VitfrostError for K outside 1..4, and for an identity without norm (nothing would scale it).
    """

    def __init__(
        self, inputs: int, outputs: int, branches: int, norm: Norm, *, bias: bool = True, expand: bool = False, identity: bool = False
    ):
        super().__init__()
        if not 1 <= branches <= 4:
            raise VitfrostError(f"{branches} branches of a linear layer are not possible; give 1 to 4")
        if identity and norm == "none":
            raise VitfrostError("an identity branch needs the norm batch to scale it; set norm to batch, or leave the identity out")
        kind: Kind = "expand" if expand else "linear"
        kinds: list[Kind] = [kind] * branches
        if identity:
            kinds.append("mean")
        self.branches = nn.ModuleList(
            Branch(inputs, outputs, kind, norm, bias and index == 0, 2 * min(inputs, outputs)) for index, kind in enumerate(kinds)
        )
        self.count = branches

    def forward(self, x: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        return reduce(torch.add, [branch(x) for branch in self.parts])

    @property
    def parts(self) -> list[Branch]:
        """The branches: K learned ones, then the identity where there is one."""
        return cast(list[Branch], list(self.branches))

    @torch.no_grad()
    def merged(self) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
        """Weight and bias of the one linear layer that computes the same in eval mode, in float64."""
        weights, biases = zip(*(branch.affine() for branch in self.parts), strict=True)
        return torch.stack(weights).sum(0), torch.stack(biases).sum(0)

    @torch.no_grad()
    def initialize(
        self,
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        noise: float,
        generator: torch.Generator,
        second_moment: Float[Tensor, "inputs inputs"] | None = None,
        mean: Float[Tensor, " inputs"] | None = None,
    ) -> None:
        """Start as one given linear layer: each branch is weight / K plus noise, and the noise of all branches adds up to zero.

        `noise` is relative to the root mean square of weight / K; `generator` is one of the CPU, so a start is the same on any device.
        The norms start with the statistics that their inputs have under the calibration inputs (mean 0 and variance 1 without any),
        so training mode starts close to the same function too.
        """
        weight = weight.double()
        drawn = torch.randn(self.count, *weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        parts = (weight + noise * weight.square().mean().sqrt() * (drawn - drawn.mean(0))) / self.count
        for index, branch in enumerate(self.parts):
            learned = index < self.count
            if learned:
                branch.set_matrix(parts[index], generator)
            matrix = branch.matrix()
            center = matrix.new_zeros(len(matrix)) if mean is None else matrix @ mean.to(matrix)
            variance = torch.ones_like(center)
            if second_moment is not None:
                variance = (torch.einsum("oi,ij,oj->o", matrix, second_moment.to(matrix), matrix) - center.square()).clamp(min=0)
            branch.set_statistics(center, variance, learned)
            if index == 0 and bias is not None:
                shift = branch.bias if branch.norm is None else branch.norm.bias
                assert shift is not None
                shift.add_(bias)
