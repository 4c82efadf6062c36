"""In every family, a change in a block is measured by running that block and those after it, to the numbers of the whole model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from vitfrost.budget.effects import MEMORY, EffectMeter
from vitfrost.budget.replacements import Replacements
from vitfrost.configs import Compact, FreezeHeads
from vitfrost.plans.choose import computed_layer
from vitfrost.vit.families import find_sites


def meter_of(known: Any, memory: int) -> EffectMeter:
    model, sites = copy.deepcopy(known.model.module), find_sites(known.model.module)
    layers = [computed_layer(site, known.statistics.sites[site["name"]].allowed) for site in known.statistics.header.sites]
    replacements = Replacements(model, sites, layers, known.statistics, FreezeHeads(kind="dense"), Compact(init="weights"), {})
    pixels = torch.randn(5, 3, *known.model.image_size, generator=torch.Generator().manual_seed(0))
    return EffectMeter(replacements, pixels.split(3), labels=[0, 1, 2, 3, 4], memory=memory)


@pytest.mark.parametrize("memory", [MEMORY, 1])
@pytest.mark.parametrize("which", ["cls", "swin", "pvt", "nextvit"])
def test_only_blocks_from_the_change_on_run(models: Any, which: str, memory: int) -> None:
    known = models[which]
    meter = meter_of(known, memory)
    stream, start = meter.stream, meter.replacements.state
    last, middle = len(start.heads) - 1, len(start.ranks) // 2
    frozen = replace(start, heads=(*start.heads[:last], frozenset({0})))
    both = replace(frozen, ranks=(*start.ranks[:middle], 4, *start.ranks[middle + 1 :]))
    sites = known.statistics.header.sites
    ran: list[int] = []
    for state, near, first in (
        (frozen, start, stream.block_of(sites[last]["name"])),
        (both, frozen, middle),
        (both, both, len(stream.blocks)),
    ):
        wanted = meter._effect(meter._whole(state), 0.0)
        meter._keep(near)
        handles = [block.register_forward_hook(lambda *_, number=number: ran.append(number)) for number, block in enumerate(stream.blocks)]
        found = replace(meter.measure(state, near), seconds=0.0)
        for handle in handles:
            handle.remove()
        assert found == wanted
        again = min(first, len(stream.blocks) - 1) if memory == MEMORY else 0
        assert ran == 2 * list(range(again, len(stream.blocks)))  # two batches
        ran.clear()
    assert found.kl > 0
