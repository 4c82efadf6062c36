"""Models with both modules of arXiv 2306.10875, built on the meta device to be counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitfrost.configs import Compact, Hallucinate
from vitfrost.methods.hallucination.maps import HeadHallucination
from vitfrost.methods.low_rank.cost import rank_of
from vitfrost.methods.low_rank.projection import CompactProjection
from vitfrost.vit.compat import import_timm
from vitfrost.vit.families import find_sites, install_map_attention

from ...shapes import shapes_only


def hallucinate_half(model: nn.Module) -> None:
    """Leave queries and keys to the first half of every layer's heads (rounded up)."""
    options = Hallucinate(0.5)
    for module in install_map_attention(model).values():
        site = module.site
        computed = -(-site.heads // 2)
        if computed < site.heads:
            sources = range(site.heads - computed)
            module.hallucinate(HeadHallucination(computed, sources, options, prefix_tokens=site.prefix_tokens, key_grid=site.grid_of_keys))
            module.keep_logits(range(site.heads), computed)


def compact(model: nn.Module, ratio: float, everywhere: bool) -> None:
    """Factorize the second projection of every feed-forward block, or of those in blocks with attention."""
    blocks = {site.name.rpartition(".")[0] for site in find_sites(model).attention}
    for name, mlp in [(name, module) for name, module in model.named_modules() if hasattr(module, "fc1") and hasattr(module, "fc2")]:
        if everywhere or name.rpartition(".")[0] in blocks:
            convolution = isinstance(mlp.fc2, nn.Conv2d)
            outputs, inputs = mlp.fc2.weight.shape[:2]
            rank, layout = rank_of(ratio, outputs, inputs), "channels-first" if convolution else "tokens"
            mlp.fc2 = CompactProjection(inputs, outputs, rank, Compact(), layout=layout, merged=True)


@cache
def counted(name: str, hallucinated: bool = False, ratio: float | None = None, everywhere: bool = True) -> tuple[int, float]:
    """Parameters and products of one image; nothing is computed on the meta device."""
    with shapes_only():
        model: Any = import_timm().create_model(name).eval()
        if ratio is not None:
            compact(model, ratio, everywhere)
        if hallucinated:
            hallucinate_half(model)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2


@pytest.fixture(scope="session")
def count() -> Callable[..., tuple[int, float]]:
    """Parameters and products of a model by name, with or without the modules."""
    return counted
