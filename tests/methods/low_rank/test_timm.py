"""Second projections of timm's own feed-forward blocks, replaced in place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vitfrost.configs import Compact
from vitfrost.methods.low_rank.cost import rank_of
from vitfrost.methods.low_rank.factorize import factorize
from vitfrost.methods.low_rank.moments import InputMoments
from vitfrost.methods.low_rank.projection import CompactProjection
from vitfrost.vit.compat import import_timm

import_timm()

from timm.layers.mlp import ConvMlp, Mlp  # noqa: E402
from timm.models.pvt_v2 import MlpWithDepthwiseConv  # noqa: E402

WIDTH, HIDDEN = 12, 48
GRID = (3, 5)


class Block(nn.Module):
    """A timm feed-forward block with inputs of its layout."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.mlp: Any = {"mlp": Mlp, "conv": ConvMlp, "depthwise": MlpWithDepthwiseConv}[kind](WIDTH, HIDDEN)

    def inputs(self, seed: int) -> torch.Tensor:
        shape = (4, WIDTH, *GRID) if self.kind == "conv" else (4, GRID[0] * GRID[1], WIDTH)
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mlp(x, GRID) if self.kind == "depthwise" else self.mlp(x)
        return y


@pytest.fixture(params=["mlp", "conv", "depthwise"])
def block(request: pytest.FixtureRequest) -> Block:
    torch.manual_seed(0)
    return Block(request.param).double().eval()


def compact(block: Block, rank: int, **form: Any) -> tuple[Block, torch.Tensor]:
    """The block with its second projection replaced, after calibration on one batch; and that batch."""
    x, fc2 = block.inputs(1), block.mlp.fc2
    moments = InputMoments(HIDDEN, channels_first=isinstance(fc2, nn.Conv2d))
    handle = fc2.register_forward_pre_hook(lambda _, inputs: moments.add(inputs[0]))
    block(x)
    handle.remove()
    known = {"second_moment": moments.second_moment, "mean": moments.mean}
    factors = factorize(fc2.weight.flatten(1), fc2.bias, rank, **known)
    made = copy.deepcopy(block)
    made.mlp.fc2 = CompactProjection.from_factors(factors, Compact(), like=fc2, **known, **form)
    return made, x


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True])
def test_at_full_rank_the_block_is_the_same(block: Block, merged: bool) -> None:
    made, x = compact(block, WIDTH, merged=merged)
    assert torch.allclose(made(x), block(x), rtol=1e-10, atol=1e-10)
    assert torch.allclose(made(block.inputs(2)), block(block.inputs(2)), rtol=1e-10, atol=1e-10)


def test_training_and_merging_in_place(block: Block) -> None:
    made, x = compact(block, rank_of(0.5, WIDTH, HIDDEN))
    target = block.inputs(2)
    made.train()
    optimizer = torch.optim.SGD(made.parameters(), 0.05)
    losses = []
    for _ in range(8):
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    made.eval()
    with torch.no_grad():
        expected = made(x)
        made.mlp.fc2.merge()
        assert torch.allclose(made(x), expected, rtol=1e-10, atol=1e-10)
    assert set(made.mlp.fc2.state_dict()) == {"down.weight", "up.weight", "up.bias"}


def test_the_merged_block_is_exported(block: Block) -> None:
    made, x = compact(block, rank_of(0.5, WIDTH, HIDDEN), merged=True)
    exported = torch.export.export(made, (x,))
    assert torch.allclose(exported.module()(x), made(x), rtol=1e-10, atol=1e-10)
    called = {str(node.target) for node in exported.graph.nodes}
    assert block.kind != "conv" or not any(word in name for name in called for word in ("permute", "transpose", "movedim"))
