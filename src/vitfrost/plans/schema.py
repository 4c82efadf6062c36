"""What a plan says, checked: how entries were chosen, how the model is quantized, what it is for, and the whole.

The lines of the layers are in heads.py, the parts that change layers in structure.py.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, WindowHeads
from ..configs.base import parsed
from ..configs.flat import Method
from ..errors import VitfrostError
from ..files import write_text
from ..identity import Identity
from ..map_sources import SOURCES, MapSource
from ..spelling import american, hashed
from ..strict import Count, Positive, Strict
from .compact import FeedForwardPlan
from .file import FORMAT, to_yaml
from .heads import HeadPlan, LayerPlan

STRUCTURE_PARTS = ("constants", "windowed", "hallucinate", "sources", "compact", "feed_forward")


class StatisticsIdentity(Strict):
    """Which statistics the entries were ranked by; the frozen values are their means."""

    hash: str
    images_hash: str
    images: Count
    precision: str
    observed: str


class LatencyPlan(Strict):
    """What a search measured of the plan's model as it is deployed: its time over the original's on a runtime (such as openvino-int8,
    both in that precision), batch 1, with the 95 % interval. It changes nothing of what the plan does."""

    runtime: str
    threads: Positive
    ratio: float = Field(gt=0)
    interval: tuple[float, float]


class Plan(Strict):
    """A whole plan. Layers stand in the order in which data passes the attention sites.

    `sources`: configurations of sources of maps that have no part of their own, by the source's name.
    """

    kind: Literal["vitfrost plan"] = "vitfrost plan"
    version: Literal[1] = 1
    model: Identity
    statistics: StatisticsIdentity | None = None
    freeze: FreezeEntries | None = None
    constants: FreezeHeads | None = None
    windowed: WindowHeads | None = None
    hallucinate: Hallucinate | None = None
    compact: Compact | None = None
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    latency: LatencyPlan | None = None
    quantize: Quantize
    layers: tuple[LayerPlan, ...]
    feed_forward: tuple[FeedForwardPlan, ...] = ()

    @cached_property
    def origin(self) -> Any:
        """The statistics themselves, where the plan was made from them in this process; no file has them."""
        return None

    def with_origin(self, statistics: Any) -> Plan:
        """The plan with the statistics in memory that it was made from, so that `compress` need not be given them; None: without."""
        made = self.model_copy()
        made.__dict__["origin"] = statistics  # as a cached value: plans that say the same are equal
        return made

    def __repr__(self) -> str:
        heads = [head for layer in self.layers for head in layer.heads]
        counts = {
            "frozen whole": sum(head.constant is not None for head in heads),
            "with frozen weights": sum(bool(head.entries) for head in heads),
        }
        others = [name for name in SOURCES if name not in ("computed", "frozen")]
        counts |= {name: sum(len(layer.heads_of(name)) for layer in self.layers) for name in others}
        made = [f"{count} of {len(heads)} heads {what}" for what, count in counts.items() if count]
        compact = sum(block.rank is not None for block in self.feed_forward)
        made += [f"{compact} compact blocks"] if compact else []
        return f"Plan({', '.join([self.model.name, f'{len(self.layers)} layers', *made, self.quantize.parts.label])})"

    __str__ = __repr__

    @model_validator(mode="after")
    def _layers_are_consistent(self) -> Plan:
        first: dict[str, int] = {}
        for number, layer in enumerate(self.layers):
            if layer.site in first:
                raise ValueError(f"layers[{number}].site is '{layer.site}', which layers[{first[layer.site]}] is already")
            first[layer.site] = number
            for place, head in enumerate(layer.heads):
                where = f"layers[{number}].heads[{place}]"
                try:
                    head.map_source.check_plan(head, self)
                except ValueError as error:
                    raise ValueError(f"{where}.{error}") from error
        return self

    @model_validator(mode="after")
    def _sources_have_configurations(self) -> Plan:
        for name in self.sources:
            if name not in SOURCES or SOURCES[name].config is None:
                raise ValueError(f"sources.{name} is not known here; there is no such source of maps with a configuration")
            try:
                self.settings_of(SOURCES[name])
            except VitfrostError as error:
                raise ValueError(f"sources.{name}: {error}") from error
        return self

    def settings_of(self, source: MapSource) -> Any:
        """The configuration of a source of maps; None where it has none."""
        if source.config is not None:
            return parsed(source.config, self.sources.get(source.name, {}))
        return None if source.part is None else getattr(self, source.part)

    @model_validator(mode="after")
    def _freezes_entries_or_heads(self) -> Plan:
        if self.freeze is not None and self.constants is not None:
            raise ValueError("constants are given beside freeze; a plan freezes entries or whole heads, so leave one of them out")
        return self

    @model_validator(mode="after")
    def _blocks_are_consistent(self) -> Plan:
        first: dict[str, int] = {}
        for number, block in enumerate(self.feed_forward):
            where = f"feed_forward[{number}]"
            if block.site in first:
                raise ValueError(f"{where}.site is '{block.site}', which feed_forward[{first[block.site]}] is already")
            first[block.site] = number
            if block.rank is not None and self.compact is None:
                raise ValueError(f"{where}.rank is {block.rank}, but the plan has no compact part; make it with vitfrost plan")
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 of the plan as canonical JSON: comments, layout and the order of keys do not matter."""
        canonical = json.dumps(hashed(self.plain()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the plan as commented YAML, atomically. The same plan gives the same bytes."""
        write_text(path, to_yaml(self.plain()))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan. Raises VitfrostError, one line that names file, field, value and what is allowed.

        So for a file that is missing, is no YAML, is of another kind or a newer version, and for any value that makes no sense.
        """
        return Plan.parse(FORMAT.plain(path), path)

    @staticmethod
    def parse(data: Any, source: str | Path) -> Plan:
        """A plan from plain data (of YAML or JSON). Raises VitfrostError that begins with `source` and names the field."""
        return FORMAT.record(Plan, american(FORMAT.check(data, source)), source)

    def plain(self) -> dict[str, Any]:
        """Plain data for YAML and JSON, without the parts that are not used, so that plans keep their hash when parts are added."""
        data = self.model_dump(mode="json", by_alias=True)
        for part in (*STRUCTURE_PARTS, "latency"):
            if not data[part]:
                del data[part]
        for layer in data["layers"]:
            for head in layer["heads"]:
                for key in ("like", "constant", "window", "dilation", "why"):
                    if head[key] is None:
                        del head[key]
        for block in data.get("feed_forward", ()):
            if block["why"] is None:
                del block["why"]
        return data


def methods_in(plan: Plan) -> tuple[Method, ...]:
    """The methods that the plan was made by."""
    parts = (plan.freeze, plan.constants, plan.windowed, plan.hallucinate, plan.compact, plan.quantize)
    return tuple(part for part in parts if part is not None)


def structure_of(plan: Plan | None) -> dict[str, Any] | None:
    """The parts of a plan that change layers, as plain data (STRUCTURE_PARTS), and by site the heads, of
    which only those without queries and keys differ from computed; None without such parts."""
    if plan is None:
        return None
    heads = {layer.site: [_structure_of_head(head) for head in layer.heads] for layer in plan.layers if layer.sources}
    if plan.constants is None and plan.windowed is None and plan.hallucinate is None and plan.compact is None and not heads:
        return None
    data = plan.plain()
    blocks = [{key: value for key, value in block.items() if key != "why"} for block in data.get("feed_forward", ())]
    parts = {part: data[part] for part in STRUCTURE_PARTS if part in data} | {"heads": heads}
    return parts | {"feed_forward": blocks} if blocks else parts


def _structure_of_head(head: HeadPlan) -> dict[str, Any]:
    if head.map_source.keeps_logits(head) and not head.map_source.of_queries:
        return {"source": "computed"}
    fields = (name for name in head.map_source.fields if name not in ("entries", "zeros"))
    later = ("dilation",)  # not named where there is none, so that statistics keep their hash
    return {"source": head.source} | {name: value for name in fields if (value := getattr(head, name)) is not None or name not in later}
