"""From the end of a search to a plan that says, for every head and block, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..configs import Quantize
from ..outputs import OutputKind, distance_text
from ..plans.choose import StatisticsRecord
from ..plans.compact import FeedForwardPlan
from ..plans.freeze_heads import with_constants
from ..plans.heads import LayerPlan
from ..plans.schema import LatencyPlan, Plan, StatisticsIdentity
from ..vit.sites import ModelSites
from .history import Measurement, SearchRecord, Taken
from .methods import SearchMethods
from .moves import State
from .replacements import Replacements
from .windows import Windows


def planned(
    statistics: StatisticsRecord,
    sites: ModelSites,
    layers: Sequence[LayerPlan],
    state: State,
    record: SearchRecord,
    methods: SearchMethods,
    windows: Windows | None = None,
) -> Plan:
    """The plan of a state. `layers` are those of the plan with all heads computed; `record` tells how the state came about; `windows`: the
    heads that could be windowed."""
    heads, blocks = reasons(record)
    size = statistics.header.model.image_size
    why = {(place, head): heads[layers[place].site, head] for place, chosen in enumerate(state.heads) for head in chosen}
    made = with_constants(layers, state.heads, methods.freeze, statistics.sites, size, why)
    if windows is not None:
        made = [_with_windows(layer, place, state, windows, heads) for place, layer in enumerate(made)]
    made = [_with_kept(layer, record) for layer in made]
    return _plan(statistics, state, made, _blocks(sites, state, record, blocks), methods, _latency(record))


def _with_windows(layer: LayerPlan, place: int, state: State, windows: Windows, why: Mapping[tuple[str, int], str]) -> LayerPlan:
    lines = list(layer.heads)
    for head in state.windows[place]:
        lines[head] = windows.line(place, head, why[layer.site, head])
    return LayerPlan.model_validate(layer.model_dump() | {"heads": [line.model_dump() for line in lines]})


def bare_plan(
    statistics: StatisticsRecord,
    sites: ModelSites,
    replacements: Replacements,
    state: State,
    methods: SearchMethods,
) -> Plan:
    """The plan of a state in 32 bits, without reasons: what the model of a state is made by."""
    layers = enumerate(replacements.layers)
    made = [layer.model_copy(update={"heads": replacements.lines(place, state)}) for place, layer in layers]
    blocks = tuple(
        FeedForwardPlan(site=block.name, width=block.width, hidden=block.hidden, rank=rank)
        for block, rank in zip(sites.feed_forward, state.ranks, strict=True)
    )
    return _plan(statistics, state, made, blocks, replace(methods, quantize=Quantize(32, 32)), None)


def _plan(
    statistics: StatisticsRecord,
    state: State,
    layers: Sequence[LayerPlan],
    blocks: tuple[FeedForwardPlan, ...],
    methods: SearchMethods,
    latency: LatencyPlan | None,
) -> Plan:
    header, factorizes = statistics.header, any(rank is not None for rank in state.ranks)
    return Plan(
        model=header.model,
        statistics=StatisticsIdentity(
            hash=statistics.content_hash, images_hash=header.images_hash, images=header.images, precision=header.precision,
            observed=header.observed,
        ),
        constants=methods.freeze if any(state.heads) else None,
        windowed=methods.window if any(state.windows) else None,
        compact=methods.compact if factorizes else None,
        latency=latency,
        quantize=methods.quantize,
        layers=tuple(layers),
        feed_forward=blocks if factorizes else (),
    )  # fmt: skip


def _latency(record: SearchRecord) -> LatencyPlan | None:
    """What was measured of the plan's model."""
    found = None if record.outcome is None else record.outcome.latency
    if found is None or found.measured is None:
        return None
    timed = found.measured
    return LatencyPlan(runtime=found.setup.runtime, threads=found.setup.threads, ratio=_rounded(timed.ratio),
                       interval=(_rounded(timed.interval[0]), _rounded(timed.interval[1])))  # fmt: skip


def _rounded(ratio: float) -> float:
    return round(ratio, 4)


def reasons(record: SearchRecord) -> tuple[dict[tuple[str, int], str], dict[str, str]]:
    """Why heads were frozen or windowed (by site and head) and blocks factorized (by site): the step that did it last and what was measured
    then."""
    heads: dict[tuple[str, int], str] = {}
    blocks: dict[str, str] = {}
    for number, taken in enumerate(record.steps, 1):
        text = step_text(number, taken, record.subject.outputs)
        if taken.kind == "rank":
            blocks[taken.site] = text
            continue
        chosen = taken.heads if taken.head is None else (taken.head,)
        for head in chosen:
            heads[taken.site, head] = text
    return heads, blocks


def step_text(number: int, taken: Taken, outputs: OutputKind = "classes") -> str:
    """ "step 3: KL +0.0021 nats, agreement 97.5 %, MACs 0.962", and the latency where the search was for one."""
    top1 = "" if taken.top1 is None else f", top-1 {taken.top1:.1f} %"
    latency = "" if taken.latency_share is None else f", latency {taken.latency_share:.3f}"
    added = distance_text(outputs, taken.increase, "+.3g")
    return f"step {number}: {added}, agreement {taken.agreement:.1f} %{top1}, MACs {taken.macs_share:.3f}{latency}"


def _with_kept(layer: LayerPlan, record: SearchRecord) -> LayerPlan:
    """The layer with what its computed heads would have done alone, frozen (or the whole layer, where heads were not searched) and
    windowed."""
    own = {(each.kind, each.head): each for each in record.alone if each.site == layer.site}
    plans = list(layer.heads)
    for head, plan in enumerate(plans):
        found = own.get(("head", head)) or own.get(("layer", None)), own.get(("window", head))
        said = [_kept(each, record) for each in found if each is not None]
        if plan.source == "computed" and said:
            plans[head] = plan.model_copy(update={"why": "; ".join(said)})
    return layer.model_copy(update={"heads": tuple(plans)})


def _blocks(sites: ModelSites, state: State, record: SearchRecord, why: dict[str, str]) -> tuple[FeedForwardPlan, ...]:
    made = []
    for block, rank in zip(sites.feed_forward, state.ranks, strict=True):
        alone = [each for each in record.alone if each.kind == "rank" and each.site == block.name]
        kept = "; ".join(f"rank {each.rank} {_kept(each, record)}" for each in alone) or None
        text = kept if rank is None else why[block.name]
        made.append(FeedForwardPlan(site=block.name, width=block.width, hidden=block.hidden, rank=rank, why=text))
    return tuple(made)


def _kept(each: Measurement, record: SearchRecord) -> str:
    whole = {"layer": "with its layer, ", "window": "windowed "}.get(each.kind or "", "")
    latency = "" if each.latency_share is None else f", {100 * (1 - each.latency_share):.2f} % of the latency"
    added = distance_text(record.subject.outputs, each.kl, "+.3g")
    return f"{whole}alone {added} for {100 * (1 - each.macs / record.original_macs):.2f} % of the MACs{latency}"
