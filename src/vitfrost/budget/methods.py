"""How a search makes its changes: the methods of a plan without their shares, which it finds itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..configs import Compact, FreezeHeads, Quantize, Search, WindowHeads, expect, refuse_idle
from ..configs.verbs import MADE_BY
from ..errors import VitfrostError
from ..plans.choose import UNQUANTIZED

SearchMethod = FreezeHeads | WindowHeads | Compact | Quantize


@dataclass(frozen=True)
class SearchMethods:
    """How heads are frozen and windowed (None: they are not), blocks compacted, and the plan's bits."""

    freeze: FreezeHeads
    window: WindowHeads | None
    compact: Compact
    quantize: Quantize

    @classmethod
    def of(cls, methods: Sequence[SearchMethod], budget: Search) -> SearchMethods:
        """Sorted and checked. Raises VitfrostError for other methods, for shares, and for what is not searched over."""
        expect(Search, budget, "budget")
        given: dict[type, Any] = {}
        for method in methods:
            if not isinstance(method, SearchMethod) or type(method) in given:
                raise VitfrostError(f"a search takes one FreezeHeads, WindowHeads, Compact and Quantize at most, not {method!r}")
            given[type(method)] = method
            refuse_idle(method)
        heads, blocks = given.get(FreezeHeads, FreezeHeads()), given.get(Compact, Compact())
        windowed = given.get(WindowHeads)
        if heads.ratio is not None or heads.by is not None or blocks.ratio not in (None, Compact.ratio):
            raise VitfrostError("a search finds shares and ratios itself, and ranks by what it measures; leave out ratio and by")
        if windowed is not None and windowed.ratio is not None:
            raise VitfrostError("a search finds the share of windowed heads itself; leave out WindowHeads.ratio")
        for kind in sorted(given.keys() - {Quantize, *(MADE_BY[unit] for unit in budget.over)}, key=str):
            units, over = " or ".join(unit for unit, made_by in MADE_BY.items() if made_by is kind), ", ".join(budget.over)
            raise VitfrostError(f"{kind.__name__} has no effect in a search over {over}; leave it out, or add {units} to Search.over")
        if blocks.init == "random":
            raise VitfrostError("Compact.init is 'random', but a search measures what factors do; give activations or weights")
        if blocks.blocks != "all":
            raise VitfrostError("Compact.blocks has no effect in a search, which ranks every block by itself; leave it out")
        heads = replace(heads, unit="head" if "heads" in budget.over else "layer", by="search", seed=budget.seed)
        windowed = (windowed or WindowHeads()) if "windows" in budget.over else None
        return cls(heads, windowed, replace(blocks, ratio=None), given.get(Quantize, UNQUANTIZED))
