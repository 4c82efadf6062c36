"""Both modules in every block of NextViT, convolution blocks too: derived reductions, counted on models that are built."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitfrost.compaction.feed_forward import CompactFeedForward, CompactionOptions
from vitfrost.hallucination.attention import HallucinatedAttention
from vitfrost.hallucination.options import HallucinationOptions
from vitfrost.vit.compat import import_timm


class ReducedAttention(nn.Module):
    """timm's E-MHSA, whose keys are averages of tokens, with hallucinated maps."""

    def __init__(self, original: Any):
        super().__init__()
        self.sr, self.norm = original.sr, original.norm
        self.attention = HallucinatedAttention(
            original.dim, original.num_heads, original.head_dim, HallucinationOptions(), separate_keys=True, out_width=original.out_dim
        )

    def forward(self, x: Tensor) -> Tensor:
        context = x if self.sr is None else self.norm(self.sr(x.transpose(1, 2))).transpose(1, 2)
        return self.attention(x, context)


@cache
def counted(name: str, hallucinated: bool, ratio: float | None, everywhere: bool = True) -> tuple[int, float]:
    """Parameters and products of one image; nothing is computed on the meta device."""
    with torch.device("meta"):
        model: Any = import_timm().create_model(name).eval()
        for block in [block for stage in model.stages for block in stage.blocks]:
            if hallucinated and hasattr(block, "e_mhsa"):
                block.e_mhsa = ReducedAttention(block.e_mhsa)
            if ratio is not None and (everywhere or hasattr(block, "e_mhsa")):
                width, hidden = block.mlp.fc1.in_channels, block.mlp.fc1.out_channels
                options = CompactionOptions(ratio=ratio)
                block.mlp = CompactFeedForward(width, hidden, options, activation=nn.ReLU(), layout="channels-first", merged=True)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("size", "hallucinated", "ratio", "everywhere", "expected"),
    [
        ("small", True, None, True, (2.9, 1.5)),
        ("small", True, 0.5, True, (13.3, 11.2)),
        ("small", True, 0.25, True, (25.1, 21.9)),
        ("small", False, 0.5, True, (10.4, 9.8)),
        ("small", True, 0.5, False, (5.5, 3.2)),
        ("small", True, 0.25, False, (9.4, 5.9)),
        ("base", True, 0.5, True, (13.3, 11.7)),
        ("large", True, 0.5, True, (13.3, 12.0)),
    ],
)
def test_reductions_of_nextvit(size: str, hallucinated: bool, ratio: float | None, everywhere: bool, expected: tuple[float, float]) -> None:
    before, after = counted(f"nextvit_{size}", False, None), counted(f"nextvit_{size}", hallucinated, ratio, everywhere)
    assert [100 * (1 - now / was) for now, was in zip(after, before, strict=True)] == pytest.approx(expected, abs=0.07)
