"""The verb `plan`: from statistics, or without them from a model, to what is done to every head, block and bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np

from ..configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, WindowHeads, refuse_idle
from ..configs.base import parsed
from ..configs.flat import UNQUANTIZED, Method
from ..configs.methods import FULL_PRECISION
from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..identity import Identity
from ..regular import is_file
from .compact import FeedForwardPlan, compact_blocks
from .fits import check_bits
from .freeze_entries import with_frozen_entries
from .freeze_heads import first_heads, frozen_by_criterion
from .hallucinate import hallucinated_layers
from .heads import COMPUTED, LayerPlan
from .schema import Plan, StatisticsIdentity
from .window_heads import windowed_by_mass

if TYPE_CHECKING:
    from torch import nn

    from ..model import Model, ModelLike


@runtime_checkable
class StatisticsRecord(Protocol):
    """What a plan takes from vitfrost.statistics.record.Statistics."""

    @property
    def header(self) -> Any: ...
    @property
    def sites(self) -> Mapping[str, Any]: ...
    @property
    def content_hash(self) -> str: ...
    def head_moments(self, site: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Methods:
    """The methods of a plan, at most one of each class."""

    entries: FreezeEntries | None
    heads: FreezeHeads | None
    hallucinate: Hallucinate | None
    compact: Compact | None
    quantize: Quantize
    windowed: WindowHeads | None = None

    @classmethod
    def of(cls, methods: Sequence[Method]) -> Methods:
        """Sorted and checked. Raises VitfrostError for two of a class, for classes that exclude each other, and for changed fields that
        have no effect."""
        given: dict[type, Any] = {}
        for method in methods or (FreezeEntries(),):
            if not isinstance(method, Method):
                raise VitfrostError(f"{method!r} is no method of a plan; give {', '.join(each.__name__ for each in get_args(Method))}")
            if type(method) in given:
                raise VitfrostError(f"{type(method).__name__} is given twice; a plan has one of a kind")
            given[type(method)] = method
            refuse_idle(method)
        if FreezeEntries in given and FreezeHeads in given:
            raise VitfrostError("FreezeEntries and FreezeHeads exclude each other; a plan freezes single weights or whole heads")
        if FreezeHeads in given and given[FreezeHeads].ratio is None:
            raise VitfrostError("FreezeHeads.ratio is missing; give the share of heads or layers to freeze (only a search finds it itself)")
        if Compact in given and given[Compact].ratio is None:
            raise VitfrostError("Compact.ratio is missing; give a ratio between 0 and 1 (only a search finds ranks itself)")
        if WindowHeads in given and given[WindowHeads].ratio is None:
            raise VitfrostError("WindowHeads.ratio is missing; give the share of heads to window (only a search finds it itself)")
        entries = given.get(FreezeEntries)
        quantize = given.get(Quantize, Quantize() if entries is not None else UNQUANTIZED)
        made = cls(entries, given.get(FreezeHeads), given.get(Hallucinate), given.get(Compact), quantize, given.get(WindowHeads))
        made._refuse_idle_together()
        return made

    def _refuse_idle_together(self) -> None:
        full = not self.quantize.parts.any_maps
        if self.entries is not None and self.entries.order != FreezeEntries.order and full:
            raise VitfrostError("FreezeEntries.order has no effect where Quantize.activations is 32; leave it out")
        on_levels = self.quantize.parts.any or (self.entries and self.entries.bits != FULL_PRECISION)
        if self.quantize.levels != Quantize.levels and not on_levels:
            raise VitfrostError("Quantize.levels has no effect where all bits are 32; leave it out")


def computed_layer(site: Mapping[str, Any], allowed: np.ndarray | None = None) -> LayerPlan:
    """The line of a site whose heads are all computed; `allowed` [W, Q, K] are the pairs that a shift mask leaves (None: all)."""
    unmasked = None if allowed is None else int(allowed.sum())
    heads = (COMPUTED,) * site["heads"]
    return LayerPlan(
        site=site["name"], maps=tuple(site["maps"]), prefix_tokens=site.get("prefix_tokens", 0), unmasked=unmasked, heads=heads
    )


def unfrozen_plan(identity: Identity, signature: Sequence[Mapping[str, Any]], quantize: Quantize) -> Plan:
    """The plan that computes every head and only quantizes.

    `identity` and `signature` are Model.identity and ModelSites.signature().
    """
    layers = tuple(computed_layer(site) for site in signature)
    return Plan(model=identity, quantize=quantize, layers=layers)


def plan(
    source: StatisticsRecord | Model | nn.Module | str | Path,
    *methods: Method,
    out: str | Path | None = None,
) -> Plan:
    """Choose the heads to hallucinate, the feed-forward blocks to compact, the attention weights or heads to freeze, and the bits.

    Args:
        source: statistics (of `vitfrost.calibrate`, or their file). Without them a model: a Model, or a timm name; such a plan is for
            training or timing. It freezes and computes the first heads, and no single weights.
        methods: at most one of FreezeEntries, FreezeHeads, WindowHeads, Hallucinate, Compact and Quantize. None at all means
            FreezeEntries(0.2). Without Quantize, weights and activations have 4 bits where single weights are frozen, else 32. Heads are
            hallucinated first, then frozen whole, then windowed; only what remains counts.
        out: file for the plan.

    Raises VitfrostError, one line, for methods that do not go together or do not fit the model, and statistics that cannot be read.
    """
    chosen = Methods.of(methods)
    if out is not None:
        refuse_unwritable(out)
    if hasattr(source, "head_moments"):
        made = _from_statistics(source, chosen).with_origin(source)  # type: ignore[arg-type]
    elif isinstance(source, str | Path) and (is_file(source) or Path(source).suffix == ".safetensors"):
        from ..statistics.record import Statistics

        made = _from_statistics(Statistics.load(source), chosen)
    else:
        made = _from_model(source, chosen)  # type: ignore[arg-type]
    if out is not None:
        made.save(out)
    return made


def _from_statistics(statistics: StatisticsRecord, chosen: Methods) -> Plan:
    header = statistics.header
    chosen.quantize.parts.check(header.model.name, None, {site["name"]: site["heads"] for site in header.sites})
    layers = [computed_layer(site, statistics.sites[site["name"]].allowed) for site in header.sites]
    hallucinate, constants, compact, windowed = chosen.hallucinate, chosen.heads, chosen.compact, chosen.windowed
    feed_forward: tuple[FeedForwardPlan, ...] = ()
    given_sources: dict[str, Any] = {}
    if header.structure is not None:
        if any(method is not None for method in (hallucinate, compact, constants, windowed)):
            raise VitfrostError(
                "the statistics are of a model with frozen or hallucinated heads or compact blocks already; plan only bits and "
                "frozen entries"
            )
        windowed = parsed(WindowHeads, header.structure["windowed"]) if "windowed" in header.structure else None
        constants, hallucinate, compact, feed_forward, layers = _given_structure(header.structure, layers)
        given_sources = header.structure.get("sources", {})
    else:
        if hallucinate is not None:
            hallucinate = replace(hallucinate, by=hallucinate.by or "medoids")
            layers = hallucinated_layers(layers, hallucinate, statistics.head_moments, header.model.name)
            _check_mix(layers, hallucinate, statistics)
        if constants is not None:
            constants = replace(constants, by=constants.by or ("fisher" if header.sensitivity else "entropy"))
            layers = frozen_by_criterion(layers, constants, statistics.sites, header.model.image_size)
        if windowed is not None:
            layers = windowed_by_mass(layers, windowed, statistics.sites, header.model.image_size)
        if compact is not None:
            feed_forward = _compact(header.feed_forward, compact)
    if chosen.entries is not None:
        if getattr(header, "detail", "entries") == "heads":
            raise VitfrostError(
                "freezing single weights takes what every weight is, and the statistics are of whole heads; calibrate with "
                'Calibrate(detail="entries"), or freeze whole heads'
            )
        layers = with_frozen_entries(layers, chosen.entries, statistics.sites)
    return Plan(
        model=header.model,
        statistics=StatisticsIdentity(
            hash=statistics.content_hash, images_hash=header.images_hash, images=header.images, precision=header.precision,
            observed=header.observed,
        ),
        freeze=chosen.entries, constants=constants, windowed=windowed, hallucinate=hallucinate, compact=compact, quantize=chosen.quantize,
        sources=given_sources, layers=tuple(layers), feed_forward=feed_forward,
    )  # fmt: skip


def _from_model(model: ModelLike, chosen: Methods) -> Plan:
    """Without statistics: the first heads are computed, or drawn, and the first ones are frozen, to uniform maps."""
    from ..artifact import Artifact
    from ..model import as_model
    from ..vit.families import find_sites

    heads, constants = chosen.hallucinate, chosen.heads
    if chosen.windowed is not None:
        raise VitfrostError("windowing heads by what they look at takes their statistics; plan from statistics")
    if chosen.entries is not None or (constants is not None and constants.by not in (None, "first")):
        raise VitfrostError(
            "freezing by what maps are takes their statistics; plan from statistics, or freeze whole heads, of which the first are taken"
        )
    loaded = as_model(model)
    if isinstance(loaded, Artifact):
        raise VitfrostError("an artifact has a structure already; calibrate it and plan from its statistics")
    sites = find_sites(loaded.module)
    check_bits(chosen.quantize, loaded.name, sites)
    made = unfrozen_plan(loaded.identity, sites.signature(), chosen.quantize)
    layers: Sequence[LayerPlan] = made.layers
    if heads is not None:
        heads = replace(heads, by=heads.by or "first")
        layers = hallucinated_layers(layers, heads, None, loaded.name)
    if constants is not None:
        constants = replace(constants, by="first")
        layers = first_heads(layers, constants, loaded.image_size)
    known = [site.signature() | {"block": site.block} for site in sites.feed_forward]
    return Plan(
        model=made.model, constants=constants, hallucinate=heads, compact=chosen.compact, quantize=chosen.quantize, layers=tuple(layers),
        feed_forward=() if chosen.compact is None else compact_blocks(known, chosen.compact),
    )  # fmt: skip


def _given_structure(
    structure: Mapping[str, Any], layers: Sequence[LayerPlan]
) -> tuple[FreezeHeads | None, Hallucinate | None, Compact | None, tuple[FeedForwardPlan, ...], list[LayerPlan]]:
    """The parts of the plan that the observed model was made with, and the layers with its frozen and hallucinated heads."""
    heads = structure["heads"]
    with_heads = [
        LayerPlan.model_validate(layer.model_dump() | {"heads": heads[layer.site]}) if layer.site in heads else layer for layer in layers
    ]
    constants = parsed(FreezeHeads, structure["constants"]) if "constants" in structure else None
    hallucinate = parsed(Hallucinate, structure["hallucinate"]) if "hallucinate" in structure else None
    compact = parsed(Compact, structure["compact"]) if "compact" in structure else None
    blocks = tuple(FeedForwardPlan.model_validate(block) for block in structure.get("feed_forward", ()))
    return constants, hallucinate, compact, blocks, with_heads


def _check_mix(layers: Sequence[LayerPlan], settings: Hallucinate, statistics: StatisticsRecord) -> None:
    """Raise VitfrostError where the mix is to start as a regression on what the statistics do not hold."""
    hallucinated = [layer.site for layer in layers if layer.hallucinated]
    if hallucinated and settings.fits_mix:
        try:
            statistics.head_moments(hallucinated[0])
        except VitfrostError as error:
            raise VitfrostError(f'{error}; or let the mix start as copies, Hallucinate(mix="copy")') from error


def _compact(sites: Sequence[Mapping[str, Any]], settings: Compact) -> tuple[FeedForwardPlan, ...]:
    if not sites:
        raise VitfrostError("the statistics do not name the model's feed-forward blocks (an older file); calibrate again to compact them")
    return compact_blocks(sites, settings)


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
            "windowed_heads": sum(len(layer.heads_of("windowed")) for layer in layers),
            "hallucinated_heads": sum(len(layer.hallucinated) for layer in layers),
            "fraction": frozen / max(entries, 1),
        }

    blocks = sum(block.rank is not None for block in plan.feed_forward)
    latency = {} if plan.latency is None else {"latency": plan.latency.model_dump(mode="json")}
    layers = [{"site": layer.site} | count([layer]) for layer in plan.layers]
    return count(plan.layers) | {"compact_blocks": blocks} | latency | {"layers": layers}
