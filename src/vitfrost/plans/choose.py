"""The verb `plan`: from statistics to the number of entries frozen in every head, and back to the entries themselves.

Shapes: W windows, H heads, Q queries, K keys. A head's entries are ranked by the criterion, ties by variance, mean and
position; a plan keeps only how many are frozen, so a person can change any head's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pydantic import BaseModel

from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..identity import Identity
from .compact import compact_blocks
from .criteria import CRITERIA, SiteArrays
from .file import save_plan
from .freeze_heads import frozen_by_criterion
from .hallucinate import COMPUTED, hallucinated_layers
from .heads import HeadPlan, LayerPlan
from .options import checked, compact_part, hallucinate_part
from .schema import FreezePlan, Plan, QuantizePlan, StatisticsIdentity
from .select import lowest, share, up_to_threshold
from .structure import CompactPlan, ConstantsPlan, FeedForwardPlan, HallucinatePlan

FREEZE_NAMES = {"ratio": "freeze", "bits": "frozen_bits", "grid": "frozen_grid"}
CONSTANTS_NAMES = {"ratio": "freeze", "kind": "constants"}


@runtime_checkable
class StatisticsRecord(Protocol):
    """What a plan takes from vitfrost.statistics.record.Statistics."""

    @property
    def header(self) -> Any: ...
    @property
    def sites(self) -> Mapping[str, SiteArrays]: ...
    @property
    def content_hash(self) -> str: ...
    def head_moments(self, site: str) -> np.ndarray: ...


@dataclass
class _Candidates:
    """Entries that compete with each other, and how many unmasked ones there are in all."""

    scores: Shaped[np.ndarray, "*shape"]
    variance: Shaped[np.ndarray, "*shape"]
    mean: Shaped[np.ndarray, "*shape"]
    eligible: Bool[np.ndarray, "*shape"]
    unmasked: int

    @classmethod
    def joined(cls, parts: Sequence[_Candidates]) -> _Candidates:
        """All entries of several heads in one row."""
        if len(parts) == 1:
            return parts[0]

        def row(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name).reshape(-1) for part in parts])

        return cls(row("scores"), row("variance"), row("mean"), row("eligible"), sum(part.unmasked for part in parts))

    def rank(self, count: int) -> Bool[np.ndarray, "*shape"]:
        """Mask of the `count` entries that rank lowest."""
        return lowest(self.scores, self.variance, self.mean, self.eligible, count)


def _eligible(layer: LayerPlan, allowed: np.ndarray | None, protect: Sequence[str]) -> Bool[np.ndarray, "windows queries keys"]:
    """Entries of a head that may be frozen: neither masked, nor in a protected row or column of a prefix token."""
    windows, _, queries, keys = layer.maps
    eligible = np.ones((windows, queries, keys), dtype=bool) if allowed is None else allowed.astype(bool)
    if "cls-rows" in protect:
        eligible[:, : layer.prefix_tokens] = False
    if "cls-columns" in protect:
        eligible[:, :, : layer.prefix_tokens] = False
    return eligible


def _heads(site: SiteArrays, layer: LayerPlan, index: int, freeze: FreezePlan) -> list[_Candidates]:
    """The candidates [W, Q, K] of every head of the site at position `index` in the model."""
    if tuple(site.maps_shape) != layer.maps:
        raise VitfrostError(f"the statistics of {layer.site} have maps {list(site.maps_shape)}, the plan has {list(layer.maps)}")
    eligible = _eligible(layer, site.allowed, freeze.protect)
    scores = CRITERIA[freeze.by](site, freeze.seed, index)
    heads = [
        _Candidates(scores[:, head], site.variance[:, head], site.mean[:, head], eligible, layer.entries_per_head)
        for head in range(layer.maps[1])
    ]
    for head in heads:
        if not all(np.isfinite(key[eligible]).all() for key in (head.scores, head.variance, head.mean)):
            raise VitfrostError(f"the statistics of {layer.site} hold values that are not finite; calibrate again")
    return heads


def _check_ratio(groups: Iterable[_Candidates], ratio: float) -> None:
    """Raise VitfrostError naming the highest possible ratio where protected entries leave too few."""
    possible = [(int(group.eligible.sum()), group.unmasked) for group in groups]
    if any(share(ratio, unmasked) > eligible for eligible, unmasked in possible):
        highest = min(Fraction(eligible, unmasked) for eligible, unmasked in possible)
        raise VitfrostError(
            f"freeze is {ratio}, but so many entries are protected that at most {math.floor(highest * 10_000) / 10_000} can be frozen"
        )


def _select(group: _Candidates, freeze: FreezePlan) -> tuple[np.ndarray, np.ndarray]:
    """Masks, flat, of the group's frozen entries and of those among them that become literal zeros."""
    count = share(freeze.ratio, group.unmasked)
    if freeze.ties == "rank":
        chosen = group.rank(count)
        tied = np.zeros_like(chosen)
    else:
        chosen, tied = up_to_threshold(group.scores, group.eligible, count)
        if freeze.ties == "le":
            tied = np.zeros_like(chosen)
    return chosen.reshape(-1), tied.reshape(-1)


def _head_plans(heads: list[list[_Candidates]], freeze: FreezePlan) -> list[list[HeadPlan]]:
    """Per layer and head, how many entries are frozen when `freeze.ratio` of every scope's entries are."""
    if freeze.scope == "head":
        groups = [[head] for layer in heads for head in layer]
    elif freeze.scope == "layer":
        groups = list(heads)
    else:
        groups = [[head for layer in heads for head in layer]]
    joined = [_Candidates.joined(group) for group in groups]
    _check_ratio(joined, freeze.ratio)
    plans: list[HeadPlan] = []
    if not groups:
        return [[] for _ in heads]
    for group, together in zip(groups, joined, strict=True):
        ends = np.cumsum([head.eligible.size for head in group])[:-1]
        for chosen, tied in zip(*(np.split(mask, ends) for mask in _select(together, freeze)), strict=True):
            entries = int(chosen.sum())
            plans.append(HeadPlan(source="frozen", entries=entries, zeros=int(tied.sum())) if entries else COMPUTED)
    ordered = iter(plans)
    return [[next(ordered) for _ in layer] for layer in heads]


def computed_layer(site: Mapping[str, Any], allowed: np.ndarray | None = None) -> LayerPlan:
    """The line of a site whose heads are all computed; `allowed` [W, Q, K] are the pairs that a shift mask leaves (None: all)."""
    unmasked = None if allowed is None else int(allowed.sum())
    heads = (COMPUTED,) * site["heads"]
    return LayerPlan(
        site=site["name"], maps=tuple(site["maps"]), prefix_tokens=site.get("prefix_tokens", 0), unmasked=unmasked, heads=heads
    )


def unfrozen_plan(identity: Identity, signature: Sequence[Mapping[str, Any]], quantize: QuantizePlan) -> Plan:
    """The plan that computes every head and only quantizes.

    `identity` and `signature` are Model.identity and ModelSites.signature().
    """
    layers = tuple(computed_layer(site) for site in signature)
    return Plan(model=identity, quantize=quantize, layers=layers)


def plan(
    statistics: StatisticsRecord | str | Path,
    *,
    hallucinate: float | Mapping[str, Any] | HallucinatePlan | None = None,
    compact: float | Mapping[str, Any] | CompactPlan | None = None,
    freeze: float | Literal["auto"] | None = "auto",
    by: str | None = None,
    scope: str = "head",
    unit: str = "entry",
    constants: str = "auto",
    window: int | None = None,
    tolerance: float = 0.1,
    ties: str = "rank",
    protect: Sequence[str] = (),
    renormalize: str = "none",
    frozen_bits: int = 4,
    frozen_grid: str = "layer",
    order: str = "quantize-merge",
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    levels: str = "published",
    seed: int = 0,
    out: str | Path | None = None,
) -> Plan:
    """Choose the heads to hallucinate, the feed-forward blocks to compact, the attention weights to freeze (EAM section 4.4) and the
    bits; save the plan where `out` is given.

    `hallucinate`: the share of every layer's heads, or the fields of HallucinatePlan; `compact`: the ratio of the rank to the width,
    or the fields of CompactPlan. Heads are hallucinated first; only entries of the remaining heads count and are frozen.
    Choosing medoids, and a mix that starts as a regression, take statistics with `similarity`.
    `unit`: what is frozen, entries of maps, or whole heads or layers, which lose their queries and keys; then `freeze` is a share of
    the model's heads or layers, `constants`, `window` and `tolerance` are fields of ConstantsPlan, and `by` is "fisher" where the
    statistics have sensitivity, else "entropy", if not given. Of entries:
    `freeze` is the share of each scope's unmasked entries: of every head's map over all its windows, of each layer, or of
    the model; None leaves the freezing out, and "auto" is 0.2, or None where heads are hallucinated or blocks compacted. Bits are 4
    if not given, and 32 with whole heads or layers. `by` names the criterion in CRITERIA. `ties`: "rank" freezes exactly
    floor(freeze * n) entries; with eps the score of the last of them, "strict" freezes H < eps and makes H == eps zero
    (equation 15 as printed), "le" freezes H <= eps. `protect` keeps "cls-rows" and "cls-columns", those of all prefix
    tokens, computed. The other options are fields of FreezePlan and QuantizePlan.
    Raises VitfrostError, one line, for options out of range and statistics that cannot be read.
    """
    if unit not in ("entry", "head", "layer"):
        raise VitfrostError(f"unit is '{unit}'; the units that can be frozen are entry, head and layer")
    if out is not None:
        refuse_unwritable(out)
    known = _read(statistics)
    if freeze == "auto":
        freeze = 0.2 if hallucinate is None and compact is None else None
    bits = 4 if unit == "entry" else 32
    weight_bits, activation_bits = bits if weight_bits is None else weight_bits, bits if activation_bits is None else activation_bits
    quantize = checked(QuantizePlan, {"weight_bits": weight_bits, "activation_bits": activation_bits, "levels": levels})
    settings, whole = None, None
    entry_options = {
        "scope": scope, "ties": ties, "protect": tuple(protect), "renormalize": renormalize, "bits": frozen_bits, "grid": frozen_grid,
        "order": order,
    }  # fmt: skip
    head_options = {"kind": constants, "window": window, "tolerance": tolerance}
    if unit == "entry":
        _refuse_changed(ConstantsPlan, head_options, CONSTANTS_NAMES, "is of whole heads; give unit head or layer as well")
        if freeze is not None:
            settings = checked(FreezePlan, entry_options | {"by": by or "entropy", "ratio": freeze, "seed": seed}, FREEZE_NAMES)
    else:
        _refuse_changed(FreezePlan, entry_options, FREEZE_NAMES, "is of frozen entries; leave it out, or give unit entry")
        if freeze is not None:
            chosen_by = by or ("fisher" if known.header.sensitivity else "entropy")
            fields = head_options | {"unit": unit, "by": chosen_by, "ratio": freeze, "seed": seed}
            whole = checked(ConstantsPlan, fields, CONSTANTS_NAMES)
    heads = None if hallucinate is None else hallucinate_part(hallucinate)
    blocks = None if compact is None else compact_part(compact)
    made = _chosen_plan(known, settings, quantize, heads, blocks, whole)
    if out is not None:
        save_plan(made, out)
    return made


def _refuse_changed(part: type[BaseModel], options: Mapping[str, Any], names: Mapping[str, str], reason: str) -> None:
    """Raise VitfrostError naming the first option that is not left at its default, where the part is not used."""
    for field, value in options.items():
        if value != part.model_fields[field].default:
            raise VitfrostError(f"{names.get(field, field)} {reason}")


def _read(statistics: StatisticsRecord | str | Path) -> StatisticsRecord:
    if not isinstance(statistics, (str, Path)):
        return statistics
    from ..statistics.record import Statistics

    return Statistics.load(statistics)


def _chosen_plan(
    statistics: StatisticsRecord,
    freeze: FreezePlan | None,
    quantize: QuantizePlan,
    hallucinate: HallucinatePlan | None = None,
    compact: CompactPlan | None = None,
    constants: ConstantsPlan | None = None,
) -> Plan:
    """The plan that these statistics give for these settings; see `plan`."""
    header = statistics.header
    layers = [computed_layer(site, statistics.sites[site["name"]].allowed) for site in header.sites]
    feed_forward: tuple[FeedForwardPlan, ...] = ()
    if header.structure is not None:
        if hallucinate is not None or compact is not None or constants is not None:
            raise VitfrostError(
                "the statistics are of a model with frozen or hallucinated heads or compact blocks already; plan only bits and "
                "frozen entries"
            )
        constants, hallucinate, compact, feed_forward, layers = _given_structure(header.structure, layers)
    else:
        if hallucinate is not None:
            layers = hallucinated_layers(layers, hallucinate, statistics.head_moments, header.model.name)
            _check_mix(layers, hallucinate, statistics)
        if constants is not None:
            layers = frozen_by_criterion(layers, constants, statistics.sites, header.model.image_size)
        if compact is not None:
            feed_forward = _compact(header.feed_forward, compact)
    if freeze is not None:
        if freeze.protect and not any(layer.prefix_tokens for layer in layers):
            raise VitfrostError(f"protect is {', '.join(freeze.protect)}, but the model has no class token or other prefix token")
        heads = [_heads(statistics.sites[layer.site], layer, index, freeze) for index, layer in enumerate(layers)]
        kept = [[candidates[head] for head in layer.logit_heads] for layer, candidates in zip(layers, heads, strict=True)]
        layers = [_with_heads(layer, plans) for layer, plans in zip(layers, _head_plans(kept, freeze), strict=True)]
    source = StatisticsIdentity(
        hash=statistics.content_hash,
        images_hash=header.images_hash,
        images=header.images,
        precision=header.precision,
        observed=header.observed,
    )
    model = header.model
    return Plan(
        model=model, statistics=source, freeze=freeze, constants=constants, hallucinate=hallucinate, compact=compact, quantize=quantize,
        layers=tuple(layers), feed_forward=feed_forward,
    )  # fmt: skip


def _given_structure(
    structure: Mapping[str, Any], layers: Sequence[LayerPlan]
) -> tuple[ConstantsPlan | None, HallucinatePlan | None, CompactPlan | None, tuple[FeedForwardPlan, ...], list[LayerPlan]]:
    """The parts of the plan that the observed model was made with, and the layers with its frozen and hallucinated heads."""
    heads = structure["heads"]
    with_heads = [
        LayerPlan.model_validate(layer.model_dump() | {"heads": heads[layer.site]}) if layer.site in heads else layer for layer in layers
    ]
    constants = ConstantsPlan.model_validate(structure["constants"]) if "constants" in structure else None
    hallucinate = HallucinatePlan.model_validate(structure["hallucinate"]) if "hallucinate" in structure else None
    compact = CompactPlan.model_validate(structure["compact"]) if "compact" in structure else None
    blocks = tuple(FeedForwardPlan.model_validate(block) for block in structure.get("feed_forward", ()))
    return constants, hallucinate, compact, blocks, with_heads


def _check_mix(layers: Sequence[LayerPlan], settings: HallucinatePlan, statistics: StatisticsRecord) -> None:
    """Raise VitfrostError where the mix is to start as a regression on what the statistics do not hold."""
    hallucinated = [layer.site for layer in layers if layer.hallucinated]
    if hallucinated and settings.fits_mix:
        try:
            statistics.head_moments(hallucinated[0])
        except VitfrostError as error:
            raise VitfrostError(f"{error}; or let the mix start as copies (--mix copy)") from error


def _with_heads(layer: LayerPlan, plans: Sequence[HeadPlan]) -> LayerPlan:
    """The layer with plans for its heads with logits, in order; hallucinated ones stay."""
    heads = list(layer.heads)
    for number, head in zip(layer.logit_heads, plans, strict=True):
        heads[number] = head
    return layer.model_copy(update={"heads": tuple(heads)})


def _compact(sites: Sequence[Mapping[str, Any]], settings: CompactPlan) -> tuple[FeedForwardPlan, ...]:
    if not sites:
        raise VitfrostError("the statistics do not name the model's feed-forward blocks (an older file); calibrate again to compact them")
    return compact_blocks(sites, settings)


def frozen_maps(
    plan: Plan, site_statistics: SiteArrays, layer: LayerPlan
) -> tuple[Bool[np.ndarray, "windows heads queries keys"], Float[np.ndarray, "windows heads queries keys"]]:
    """Which entries of a layer the plan freezes, and their constants (float32, not yet quantized; 0 outside the mask).

    A head's frozen entries are its `entries` lowest in rank: those that were chosen, whatever the scope, unless the plan was
    edited since. Constants are the means over images, literal zeros for the last `zeros` in rank.
    Raises VitfrostError when a head is to freeze more entries than are neither masked nor protected.
    """
    mask = np.zeros(layer.maps, dtype=bool)
    values = np.zeros(layer.maps, dtype=np.float32)
    if plan.freeze is None:
        return mask, values
    index = next(number for number, other in enumerate(plan.layers) if other.site == layer.site)
    candidates = _heads(site_statistics, layer, index, plan.freeze)
    for number, (head, entries) in enumerate(zip(layer.heads, candidates, strict=True)):
        possible = int(entries.eligible.sum())
        if head.entries > possible:
            where = f"layers[{index}].heads[{number}].entries"
            raise VitfrostError(f"{where} is {head.entries}, but only {possible} can be frozen; the others are masked or protected")
        mask[:, number] = entries.rank(head.entries)
        kept = entries.rank(head.entries - head.zeros) if head.zeros else mask[:, number]
        values[:, number][kept] = entries.mean[kept]
    return mask, values


def summary(plan: Plan) -> dict[str, Any]:
    """How much a plan freezes: per layer and in all, entries, frozen entries, their fraction, and heads frozen wholly; and `latency` where
    a search measured it.

    Only unmasked entries count; where the plan has no masks (an unfrozen one) all do.
    """

    def count(layers: Sequence[LayerPlan]) -> dict[str, Any]:
        entries = sum(layer.entries_per_head * len(layer.heads) for layer in layers)
        frozen = sum(head.entries for layer in layers for head in layer.heads)
        return {
            "heads": sum(len(layer.heads) for layer in layers),
            "frozen_heads": sum(
                head.constant is not None or head.entries == layer.entries_per_head for layer in layers for head in layer.heads
            ),
            "constant_heads": sum(len(layer.constant) for layer in layers),
            "entries": entries,
            "frozen_entries": frozen,
            "hallucinated_heads": sum(len(layer.hallucinated) for layer in layers),
            "fraction": frozen / max(entries, 1),
        }

    blocks = sum(block.rank is not None for block in plan.feed_forward)
    latency = {} if plan.latency is None else {"latency": plan.latency.model_dump(mode="json")}
    layers = [{"site": layer.site} | count([layer]) for layer in plan.layers]
    return count(plan.layers) | {"compact_blocks": blocks} | latency | {"layers": layers}
