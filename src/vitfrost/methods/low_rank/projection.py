"""A projection of low rank, y = U (V h) + b: in the place of a feed-forward block's second layer, it makes the block compact.

Shapes: i inputs (hidden channels, m d), o outputs (width d), r rank. Tokens are [..., i], or [B, i, H, W] in channel-first form.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...configs import Compact
from ...errors import VitfrostError
from .branches import ParallelLinear
from .factorize import Factors

Layout = Literal["tokens", "channels-first"]


class CompactProjection(nn.Module):
    """`down` (V) and `up` (U), nothing between them; in the place of a linear layer, or of a 1 x 1 convolution (channel-first form).

    In training form both are ParallelLinear. `merge` turns them into plain layers, V without bias: r (i + o) + o parameters, as
    nn.Linear, or nn.Conv2d in channel-first form. `merged=True` builds the merged form, to load its state. `bias=False` leaves out
    the bias only where no norm brings one. Raises VitfrostError for a rank that no factors have, and where the state of one form is
    loaded into the other.
    """

    down: nn.Module
    up: nn.Module

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        options: Compact,
        *,
        layout: Layout = "tokens",
        bias: bool = True,
        merged: bool = False,
    ):
        super().__init__()
        if not 1 <= rank <= min(inputs, outputs):
            raise VitfrostError(
                f"a projection from {inputs} to {outputs} channels has no factors of rank {rank}; give 1 to {min(inputs, outputs)}"
            )
        self.inputs, self.outputs, self.rank = inputs, outputs, rank
        self.layout, self.merged = layout, merged
        self.has_bias = bias or options.norm == "batch"
        if merged:
            self.down, self.up = self._plain_layers()
        else:
            form: dict[str, Any] = {
                "branches": options.branches,
                "norm": options.norm,
                "expand": options.expand,
                "identity": options.identity,
            }
            self.down = ParallelLinear(inputs, rank, bias=False, **form)
            self.up = ParallelLinear(rank, outputs, bias=bias, **form)
        self.register_load_state_dict_pre_hook(self._check_form)

    def _plain_layers(self, **like: Any) -> tuple[nn.Module, nn.Module]:
        if self.layout == "tokens":
            return nn.Linear(self.inputs, self.rank, bias=False, **like), nn.Linear(self.rank, self.outputs, bias=self.has_bias, **like)
        down = nn.Conv2d(self.inputs, self.rank, 1, bias=False, **like)
        return down, nn.Conv2d(self.rank, self.outputs, 1, bias=self.has_bias, **like)

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        options: Compact,
        *,
        like: nn.Linear | nn.Conv2d,
        merged: bool = False,
        second_moment: Float[Tensor, "inputs inputs"] | None = None,
        mean: Float[Tensor, " inputs"] | None = None,
        seed: int = 0,
    ) -> CompactProjection:
        """What replaces the layer `like`, with its layout, dtype, device and mode: merged, or a training form that starts as the factors.

        `second_moment` and `mean` of the layer's inputs give the norms of the training form their statistics.
        Raises VitfrostError where `like` is neither linear nor a plain 1 x 1 convolution, does not have the factors' shape, or has
        no bias to take theirs.
        """
        _check_replaceable(like, factors)
        layout: Layout = "channels-first" if isinstance(like, nn.Conv2d) else "tokens"
        rank, inputs = factors.down.shape
        made = cls(inputs, len(factors.up), rank, options, layout=layout, bias=like.bias is not None, merged=merged)
        if not made.has_bias and factors.bias.any():
            raise VitfrostError("factors with a bias do not fit a layer without one; factorize without the inputs' mean")
        made = made.double().to(factors.up.device)
        if isinstance(made.down, ParallelLinear) and isinstance(made.up, ParallelLinear):
            generator = torch.Generator().manual_seed(seed)
            made.down.initialize(factors.down, None, options.noise, generator, second_moment, mean)
            inner = None if second_moment is None else factors.down @ second_moment.to(factors.down) @ factors.down.T
            inner_mean = None if mean is None else factors.down @ mean.to(factors.down)
            made.up.initialize(factors.up, factors.bias if made.has_bias else None, options.noise, generator, inner, inner_mean)
        else:
            made._set_plain(factors.down, factors.up, factors.bias)
        return made.to(like.weight).train(like.training)

    @torch.no_grad()
    def _set_plain(self, down: Float[Tensor, "rank inputs"], up: Float[Tensor, "outputs rank"], bias: Float[Tensor, " outputs"]) -> None:
        for layer, weight in ((self.down, down), (self.up, up)):
            parameter = layer.get_parameter("weight")
            parameter.copy_(weight.view(parameter.shape))
        if self.has_bias:
            self.up.get_parameter("bias").copy_(bias)

    def forward(self, x: Float[Tensor, "*sizes"]) -> Float[Tensor, "*other_sizes"]:
        """Channels from i to o. In training mode with BatchNorm, statistics are over all tokens of the batch (of all processes)."""
        if self.merged:
            y: Tensor = self.up(self.down(x))
            return y
        if self.layout == "channels-first":
            x = x.movedim(1, -1)
        y = self.up(self.down(x.flatten(0, -2))).view(*x.shape[:-1], self.outputs)
        return y.movedim(-1, 1) if self.layout == "channels-first" else y

    def merge(self) -> CompactProjection:
        """Turn into the inference form, in place: what eval mode computes. Merging what is merged changes nothing."""
        if self.merged:
            return self
        assert isinstance(self.down, ParallelLinear)
        assert isinstance(self.up, ParallelLinear)
        like = next(self.parameters())
        (down, inner_bias), (up, bias) = self.down.merged(), self.up.merged()
        self.down, self.up = self._plain_layers(dtype=like.dtype, device=like.device)
        self.merged = True
        self._set_plain(down, up, bias + up @ inner_bias)
        return self.train(self.training)

    @staticmethod
    def _check_form(module: CompactProjection, state: dict[str, Any], prefix: str, *_: object) -> None:
        """Refuse the other form's state before torch lists every missing and unexpected key."""
        parts = f"{prefix}down.", f"{prefix}up."
        branches = tuple(f"{part}branches." for part in parts)
        trains = any(key.startswith(branches) for key in state)
        if trains == module.merged and any(key.startswith(parts) for key in state):
            held, wanted = ("training", "inference") if trains else ("inference", "training")
            mend = "merge the trained layer first" if trains else "build the layer with merged=True"
            name = prefix.rstrip(".") or "a compact projection"
            raise VitfrostError(f"the state of {name} is in {held} form, its layer in {wanted} form; {mend}")


def _check_replaceable(layer: nn.Linear | nn.Conv2d, factors: Factors) -> None:
    if isinstance(layer, nn.Conv2d):
        form = (layer.kernel_size, layer.stride, layer.padding, layer.groups)
        if form != ((1, 1), (1, 1), (0, 0), 1):
            raise VitfrostError(f"{layer} is not a plain 1 x 1 convolution and cannot become a compact projection; leave it as it is")
    held, given = tuple(layer.weight.shape[:2]), (len(factors.up), factors.down.shape[1])
    if held != given:
        raise VitfrostError(f"factors of a weight {given} do not fit a layer with a weight {held}; factorize this layer's own weight")
