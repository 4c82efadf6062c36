"""What a plan says, checked: for every head its map source, how entries were chosen, and how the model is quantised.

Validators raise ValueError with a text that starts with the path of the field below their own model; `describe` puts the
rest of the path in front, so every error names the field, its value and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from ..errors import VitfrostError
from ..files import write_text
from ..freezing.constants import Kind
from .criteria import CRITERIA
from .strict import Count, Positive, Strict
from .structure import NO_SWIN, CompactPlan, ConstantsPlan, FeedForwardPlan, HallucinatePlan, Window, is_swin
from .text import from_yaml, to_yaml

KIND, VERSION = "vitfrost plan", 1

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
Protected = Annotated[tuple[Literal["cls-rows", "cls-columns"], ...], AfterValidator(lambda parts: tuple(sorted(set(parts))))]


class HeadPlan(Strict):
    """Where a head's maps come from. `entries` counts the frozen attention weights over all windows of the head.

    The last `zeros` of them in rank become literal zeros instead of means: the ties of equation 15 read as printed.
    A head that is frozen whole has a `constant` instead: its kind, and the `window` of a local one; it has no queries and keys.
    `why`: what was measured when it was chosen. A hallucinated head has no queries and keys either; its map starts `like` that of
    another head of its layer.
    """

    source: Literal["computed", "frozen", "hallucinated"]
    entries: Count = 0
    zeros: Count = 0
    like: Count | None = None
    constant: Kind | None = None
    window: Window | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _constant_goes_with_frozen(self) -> HeadPlan:
        if self.constant is not None and self.source != "frozen":
            raise ValueError(f"constant is '{self.constant}', but a {self.source} head has none; leave it out, or write source: frozen")
        if self.constant is not None and self.entries:
            raise ValueError(f"entries is {self.entries}, but constant freezes the whole head; leave one of them out")
        if (self.window is None) == (self.constant == "local"):
            missing = (
                "is missing, and a local constant has one" if self.window is None else f"is {self.window}, but only local ones have one"
            )
            raise ValueError(f"window {missing}")
        return self

    @model_validator(mode="after")
    def _source_and_entries_agree(self) -> HeadPlan:
        if self.source != "frozen" and self.entries:
            raise ValueError(f"entries is {self.entries}, but a {self.source} head has none; leave it out, or write source: frozen")
        if self.source != "hallucinated" and self.like is not None:
            raise ValueError(f"like is {self.like}, but a {self.source} head is like itself; leave it out, or write source: hallucinated")
        if self.source == "frozen" and not self.entries and self.constant is None:
            raise ValueError("entries is 0, but a frozen head has at least 1, or a constant; write one, or source: computed")
        if self.zeros > self.entries:
            raise ValueError(f"zeros is {self.zeros}, more than the {self.entries} frozen entries")
        return self


class LayerPlan(Strict):
    """The heads of one attention site. `maps` is [windows, heads, queries, keys].

    `unmasked` is how many entries of a head its shift mask leaves (None: all); only they can be frozen.
    """

    site: str
    maps: tuple[Positive, Positive, Positive, Positive]
    prefix_tokens: Count = 0
    unmasked: Positive | None = None
    heads: tuple[HeadPlan, ...]

    @property
    def entries_per_head(self) -> int:
        """How many attention weights one head has that can be frozen."""
        windows, _, queries, keys = self.maps
        return windows * queries * keys if self.unmasked is None else self.unmasked

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """Heads without queries and keys, ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.source == "hallucinated")

    @property
    def constant(self) -> tuple[int, ...]:
        """Heads whose whole map is a constant, without queries and keys, ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.constant is not None)

    @property
    def logit_heads(self) -> tuple[int, ...]:
        """Heads with queries and keys (computed ones, and those with frozen entries), ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.source != "hallucinated" and head.constant is None)

    @property
    def order(self) -> tuple[int, ...]:
        """All heads: those with queries and keys, those hallucinated from them, those with constant maps."""
        return self.logit_heads + self.hallucinated + self.constant

    @model_validator(mode="after")
    def _hallucinated_heads_have_sources(self) -> LayerPlan:
        if self.hallucinated and not self.logit_heads:
            raise ValueError("heads are hallucinated, but none is left to make their maps of; leave at least one computed")
        for number in self.hallucinated:
            like = self.heads[number].like
            if like is not None and like not in self.logit_heads:
                raise ValueError(f"heads[{number}].like is {like}; it should be one of the heads {', '.join(map(str, self.logit_heads))}")
        if self.hallucinated and self.maps[0] > 1:
            raise ValueError(f"heads are hallucinated, but the maps have {self.maps[0]} windows; {NO_SWIN}; leave them computed")
        return self

    @model_validator(mode="after")
    def _heads_fit_maps(self) -> LayerPlan:
        windows, heads, queries, keys = self.maps
        if len(self.heads) != heads:
            raise ValueError(f"heads has {len(self.heads)} lines, but maps says that there are {heads} heads")
        if self.unmasked is not None and self.unmasked > windows * queries * keys:
            raise ValueError(f"unmasked is {self.unmasked}, more than the {windows * queries * keys} entries of a head")
        for number, head in enumerate(self.heads):
            if head.entries > self.entries_per_head:
                raise ValueError(f"heads[{number}].entries is {head.entries}, more than the {self.entries_per_head} entries of a head")
        return self


def sources(layer: LayerPlan) -> tuple[int, ...]:
    """For each hallucinated head, ascending, the head it starts as: `like`, else the next lower one with logits, or the first."""
    return tuple(
        next((other for other in reversed(layer.logit_heads) if other < head), layer.logit_heads[0])
        if (like := layer.heads[head].like) is None
        else like
        for head in layer.hallucinated
    )


class FreezePlan(Strict):
    """How entries were chosen (EAM section 4.4) and how their constants are stored and merged.

    `by`, `seed` and `protect` rank the entries of a head; `ratio`, `scope` and `ties` gave the counts in the layers.
    `grid`: constants on the log grid of the layer's attention quantiser, or on one fitted per head.
    """

    unit: Literal["entry"] = "entry"
    by: str = "entropy"
    ratio: float = Field(strict=True, ge=0, le=1)
    scope: Literal["head", "layer", "model"] = "head"
    ties: Literal["rank", "strict", "le"] = "rank"
    protect: Protected = ()
    renormalise: Literal["none", "mass", "renorm"] = "none"
    bits: Bits = 4
    grid: Literal["layer", "head"] = "layer"
    order: Literal["quantise-merge", "merge-quantise"] = "quantise-merge"
    seed: Count = 0

    @model_validator(mode="after")
    def _criterion_is_known(self) -> FreezePlan:
        if self.by not in CRITERIA:
            raise ValueError(f"by is '{self.by}'; it should be one of {', '.join(CRITERIA)}")
        return self


class QuantizePlan(Strict):
    """Bits of weights and activations (32: left in floating point), and RepQ-ViT's levels as published or strict."""

    weight_bits: Bits = 4
    activation_bits: Bits = 4
    levels: Literal["published", "strict"] = "published"


class ModelIdentity(Strict):
    """Which model a plan is for, as LoadedModel.identity() gives it."""

    name: str
    image_size: tuple[Positive, Positive]
    weight_tag: str
    state_hash: str
    classes: Count


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
    """A whole plan. Layers stand in the order in which data passes the attention sites."""

    kind: Literal["vitfrost plan"] = "vitfrost plan"
    version: Literal[1] = 1
    model: ModelIdentity
    statistics: StatisticsIdentity | None = None
    freeze: FreezePlan | None = None
    constants: ConstantsPlan | None = None
    hallucinate: HallucinatePlan | None = None
    compact: CompactPlan | None = None
    latency: LatencyPlan | None = None
    quantize: QuantizePlan
    layers: tuple[LayerPlan, ...]
    feed_forward: tuple[FeedForwardPlan, ...] = ()

    @model_validator(mode="after")
    def _layers_are_consistent(self) -> Plan:
        first: dict[str, int] = {}
        for number, layer in enumerate(self.layers):
            if layer.site in first:
                raise ValueError(f"layers[{number}].site is '{layer.site}', which layers[{first[layer.site]}] is already")
            first[layer.site] = number
            for place, head in enumerate(layer.heads):
                where = f"layers[{number}].heads[{place}]"
                if head.entries and (self.freeze is None or self.statistics is None):
                    missing = "freeze" if self.freeze is None else "statistics"
                    raise ValueError(f"{where}.source is 'frozen', but the plan has no {missing} part; make it with vitfrost plan")
                if head.constant is not None and self.constants is None:
                    raise ValueError(
                        f"{where}.constant is '{head.constant}', but the plan has no constants part; make it with vitfrost plan"
                    )
                if head.source == "hallucinated" and self.hallucinate is None:
                    raise ValueError(f"{where}.source is 'hallucinated', but the plan has no hallucinate part; make it with vitfrost plan")
                if head.source == "hallucinated" and is_swin(self.model.name):
                    raise ValueError(f"{where}.source is 'hallucinated', but {NO_SWIN}; leave it computed")
                if head.zeros and self.freeze is not None and self.freeze.ties != "strict":
                    raise ValueError(f"{where}.zeros is {head.zeros}, but freeze.ties is '{self.freeze.ties}'; zeros go with ties: strict")
        return self

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

    def plain(self) -> dict[str, Any]:
        """Plain data for YAML and JSON, without the parts that are not used, so that plans keep their hash when parts are added."""
        data = self.model_dump(mode="json")
        for part in (*STRUCTURE_PARTS, "latency"):
            if not data[part]:
                del data[part]
        for layer in data["layers"]:
            for head in layer["heads"]:
                for key in ("like", "constant", "window", "why"):
                    if head[key] is None:
                        del head[key]
        for block in data.get("feed_forward", ()):
            if block["why"] is None:
                del block["why"]
        return data


STRUCTURE_PARTS = ("constants", "hallucinate", "compact", "feed_forward")


def structure_of(plan: Plan | None) -> dict[str, Any] | None:
    """The parts of a plan that change layers, as plain data: constants, hallucinate, compact, feed_forward, and by site the heads, of
    which only those without queries and keys differ from computed; None without such parts."""
    if plan is None or (plan.constants is None and plan.hallucinate is None and plan.compact is None):
        return None
    data = plan.plain()
    heads = {
        layer.site: [_structure_of_head(head) for head in layer.heads] for layer in plan.layers if layer.hallucinated or layer.constant
    }
    blocks = [{key: value for key, value in block.items() if key != "why"} for block in data.get("feed_forward", ())]
    parts = {part: data[part] for part in STRUCTURE_PARTS if part in data} | {"heads": heads}
    return parts | {"feed_forward": blocks} if blocks else parts


def _structure_of_head(head: HeadPlan) -> dict[str, Any]:
    if head.source == "hallucinated":
        return {"source": head.source, "like": head.like}
    if head.constant is not None:
        return {"source": head.source, "constant": head.constant, "window": head.window}
    return {"source": "computed"}


def _path(location: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def describe(error: ValidationError, names: Mapping[str, str] | None = None) -> str:
    """The first problem in one line: field path, value, what is allowed. `names` renames fields to a caller's options."""
    first = error.errors(include_url=False)[0]
    path = _path(first["loc"])
    path = (names or {}).get(path, path)
    if first["type"] == "value_error":
        text = f"{path}.{first['ctx']['error']}" if path else str(first["ctx"]["error"])
    elif first["type"] == "missing":
        text = f"{path} is missing"
    else:
        value = repr(first["input"])
        text = f"{path or 'it'} is {value if len(value) <= 60 else value[:57] + '...'}; {first['msg'].replace('Input', 'it')}"
    more = error.error_count() - 1
    return text + (f" (and {more} more {'problems' if more > 1 else 'problem'})" if more else "")


def parse_plan(data: Any, source: str) -> Plan:
    """A plan from plain data (of YAML or JSON). Raises VitfrostError that begins with `source` and names the field."""
    if not isinstance(data, dict) or data.get("kind") != KIND:
        found = f"its kind is {data.get('kind')!r}" if isinstance(data, dict) and "kind" in data else "it has no kind"
        raise VitfrostError(f"{source} is not a plan: {found}, and should say 'kind: {KIND}'")
    version = data.get("version")
    if type(version) is int and version > VERSION:
        raise VitfrostError(f"{source} has plan version {version}, this vitfrost reads up to {VERSION}; update vitfrost")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise VitfrostError(f"{source}: {describe(error)}") from error


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as commented YAML, atomically. The same plan gives the same bytes."""
    write_text(path, to_yaml(plan.plain()))


def load_plan(path: str | Path) -> Plan:
    """Read a plan. Raises VitfrostError, one line that names file, field, value and what is allowed.

    So for a file that is missing, is no YAML, is of another kind or a newer version, and for any value that makes no sense.
    """
    try:
        data = from_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitfrostError(f"no plan {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise VitfrostError(f"{path} is not readable YAML: {error}") from error
    return parse_plan(data, source=str(path))


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the plan as canonical JSON: comments, layout and the order of keys do not matter."""
    canonical = json.dumps(plan.plain(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_fits(
    plan: Plan,
    identity: Mapping[str, Any],
    signature: Sequence[Mapping[str, Any]],
    feed_forward: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Raise VitfrostError saying what differs unless the plan is for this model.

    `identity` and `signature` are LoadedModel.identity() and ModelSites.signature(), `feed_forward` those of its feed-forward sites.
    The weight tag may differ: it only says where the weights came from, their hash says which they are.
    """
    ours, theirs = plan.model, ModelIdentity.model_validate(dict(identity))
    for what, planned, given in (
        ("model", ours.name, theirs.name),
        ("resolution", "x".join(map(str, ours.image_size)), "x".join(map(str, theirs.image_size))),
        ("number of classes", ours.classes, theirs.classes),
    ):
        if planned != given:
            raise VitfrostError(f"the plan is for another {what}: {planned} in the plan, {given} given")
    check_sites(plan, signature, feed_forward)
    if ours.state_hash != theirs.state_hash:
        raise VitfrostError(
            f"the plan is for other weights of {ours.name}: {ours.weight_tag} ({ours.state_hash[:12]}) in the plan, "
            f"{theirs.weight_tag} ({theirs.state_hash[:12]}) given"
        )


def check_sites(plan: Plan, signature: Sequence[Mapping[str, Any]], feed_forward: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Raise VitfrostError saying what differs unless the plan is for a model with these attention and feed-forward sites."""
    name = plan.model.name
    sites = [(site["name"], tuple(site["maps"]), site.get("prefix_tokens", 0)) for site in signature]
    planned_sites = [(layer.site, layer.maps, layer.prefix_tokens) for layer in plan.layers]
    if len(sites) != len(planned_sites):
        raise VitfrostError(f"the plan has {len(planned_sites)} layers, but {name} has {len(sites)} attention sites")
    for number, (planned_site, site) in enumerate(zip(planned_sites, sites, strict=True)):
        if planned_site != site:
            shown = [f"{name} with maps {list(maps)} and {prefix} prefix tokens" for name, maps, prefix in (planned_site, site)]
            raise VitfrostError(f"layers[{number}] of the plan is {shown[0]}, but the model's site is {shown[1]}")
    if feed_forward is None:
        return
    blocks = {site["name"]: (site["width"], site["hidden"]) for site in feed_forward}
    for number, block in enumerate(plan.feed_forward):
        if block.site not in blocks:
            raise VitfrostError(f"feed_forward[{number}] of the plan is {block.site}, which {name} does not have")
        if blocks[block.site] != (block.width, block.hidden):
            raise VitfrostError(
                f"feed_forward[{number}] of the plan is {block.site} of width {block.width} and {block.hidden} hidden channels, "
                f"but the model's has {blocks[block.site][0]} and {blocks[block.site][1]}"
            )
