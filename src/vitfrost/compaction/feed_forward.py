"""The compact feed-forward block: h = act(W1 x + b1), y = U (V h) + b with U and V of rank r.

Shapes: d width, m d hidden channels, r rank. Tokens are [..., d], or [B, d, H, W] in channel-first form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import VitfrostError
from .branches import Norm, ParallelLinear
from .cost import rank_of
from .factorise import Factors

Layout = Literal["tokens", "channels-first"]


@dataclass(frozen=True)
class CompactionOptions:
    """What the paper's abstract leaves open about the compact feed-forward block.

    ratio: rank r = round(ratio d). branches: K parallel branches of V and of U while training (1 to 4). norm: a BatchNorm over tokens
    behind each branch, or none. expand: branches of two weights each. identity: one more branch, a fixed average of channels,
    which starts at zero. noise: how far branches differ at the start, relative to their weights.
    """

    ratio: float = 0.5
    branches: int = 2
    norm: Norm = "batch"
    expand: bool = False
    identity: bool = False
    noise: float = 0.01


class CompactFeedForward(nn.Module):
    """fc1, activation, then `down` (V) and `up` (U), nothing between them; a convolutional MLP (1 x 1) in channel-first form.

    In training form V and U are ParallelLinear; `merge` makes them plain layers, V without bias: r (m d + d) + d parameters.
    `merged=True` builds the merged form, to load its state. Raises VitfrostError where the rank saves nothing, and where the state
    of one form is loaded into the other.
    """

    up: nn.Module
    down: nn.Module

    def __init__(
        self,
        width: int,
        hidden: int,
        options: CompactionOptions,
        *,
        activation: nn.Module | None = None,
        layout: Layout = "tokens",
        merged: bool = False,
    ):
        super().__init__()
        self.rank = rank_of(options.ratio, width, hidden)
        self.layout, self.merged = layout, merged
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU() if activation is None else activation
        if merged:
            self.down, self.up = nn.Linear(hidden, self.rank, bias=False), nn.Linear(self.rank, width)
        else:
            form: dict[str, Any] = {
                "branches": options.branches,
                "norm": options.norm,
                "expand": options.expand,
                "identity": options.identity,
            }
            self.down = ParallelLinear(hidden, self.rank, bias=False, **form)
            self.up = ParallelLinear(self.rank, width, **form)
        self.register_load_state_dict_pre_hook(self._check_form)

    @classmethod
    def from_feed_forward(
        cls,
        fc1_weight: Tensor,
        fc1_bias: Float[Tensor, " hidden"] | None,
        factors: Factors,
        options: CompactionOptions,
        *,
        activation: nn.Module | None = None,
        layout: Layout = "tokens",
        second_moment: Float[Tensor, "hidden hidden"] | None = None,
        mean: Float[Tensor, " hidden"] | None = None,
        seed: int = 0,
    ) -> CompactFeedForward:
        """Training form that starts as the factorised layer, with the dtype and device of `fc1_weight` [hidden, d] or [hidden, d, 1, 1].

        `factors` are those of the second projection; `second_moment` and `mean` of its input give the norms their statistics.
        Raises VitfrostError where the factors' rank is not that of the options.
        """
        weight = fc1_weight.flatten(1)
        made = cls(weight.shape[1], len(weight), options, activation=activation, layout=layout)
        if factors.up.shape[1] != made.rank:
            raise VitfrostError(
                f"factors of rank {factors.up.shape[1]} do not fit rank {made.rank} of the options; factorise with that rank"
            )
        made = made.double().to(factors.up.device)
        generator = torch.Generator().manual_seed(seed)
        assert isinstance(made.down, ParallelLinear)
        assert isinstance(made.up, ParallelLinear)
        made.down.initialise(factors.down, None, options.noise, generator, second_moment, mean)
        inner_moment = None if second_moment is None else factors.down @ second_moment.double() @ factors.down.T
        made.up.initialise(
            factors.up, factors.bias, options.noise, generator, inner_moment, None if mean is None else factors.down @ mean.double()
        )
        with torch.no_grad():
            made.fc1.weight.copy_(weight)
            made.fc1.bias.copy_(torch.zeros(len(weight)) if fc1_bias is None else fc1_bias)
        return made.to(fc1_weight)

    def forward(self, x: Float[Tensor, "*sizes"]) -> Float[Tensor, "*sizes"]:
        """Same shape as `x`. In training mode with BatchNorm, statistics are over all tokens of the batch."""
        if self.layout == "channels-first":
            x = x.movedim(1, -1)
        hidden = self.act(self.fc1(x)).flatten(0, -2)
        x = self.up(self.down(hidden)).view(x.shape)
        return x.movedim(-1, 1) if self.layout == "channels-first" else x

    def merge(self) -> CompactFeedForward:
        """Turn into the inference form, in place: what eval mode computes. Merging what is merged changes nothing."""
        if self.merged:
            return self
        assert isinstance(self.down, ParallelLinear)
        assert isinstance(self.up, ParallelLinear)
        (down, inner_bias), (up, bias) = self.down.merged(), self.up.merged()
        self.down = _linear(down, None, self.fc1.weight)
        self.up = _linear(up, bias + up @ inner_bias, self.fc1.weight)
        self.merged = True
        return self

    @staticmethod
    def _check_form(module: CompactFeedForward, state: dict[str, Any], prefix: str, *_: object) -> None:
        """Refuse the other form's state before torch lists every missing and unexpected key."""
        here = {key.removeprefix(prefix) for key in state if key.startswith((f"{prefix}down.", f"{prefix}up."))}
        if here and ("down.weight" in here) != module.merged:
            held, wanted = ("training", "inference") if module.merged else ("inference", "training")
            mend = "merge the trained layer first" if module.merged else "build the layer with merged=True"
            raise VitfrostError(
                f"the state of {prefix.rstrip('.') or 'a compact feed-forward block'} is in {held} form, its layer in {wanted} form; {mend}"
            )


def _linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None, like: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight.data = weight.to(like)
    if bias is not None:
        layer.bias.data = bias.to(like)
    return layer
