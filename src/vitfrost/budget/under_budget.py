"""The verb `plan_under_budget`: the plan that a greedy search comes to, by what every change does to the model's outputs on images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..artifact import Artifact
from ..errors import VitfrostError
from ..evaluation.evaluate import find_images
from ..files import refuse_unwritable
from ..images.batches import Batch, images_hash, take_usable
from ..images.given import AnyImages, ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..images.source import LABELS_FILE, ImageSet
from ..methods.constant_heads.constants import Kind
from ..methods.low_rank.moments import InputMoments
from ..model import Model, ModelLike, as_model
from ..passes.compress import compress
from ..passes.structure import watch_inputs
from ..plans.choose import CONSTANTS_NAMES, computed_layer
from ..plans.file import save_plan
from ..plans.options import COMPACT_NAMES, checked
from ..plans.schema import Plan, QuantizePlan
from ..plans.structure import CompactPlan, ConstantsPlan, FeedForwardPlan
from ..progress import say
from ..statistics.record import Statistics
from ..vit.families import find_sites
from ..vit.lean import block_cut_short
from ..vit.load import device_of
from .asked import Asked, asked, how_near, refuse_below, said
from .effects import Effect, EffectMeter
from .greedy import Goal, Rescore, Search, Step, drop_of
from .history import SUFFIX, Measurement, SearchEnd, SearchImages, SearchLog, SearchSubject, Taken, open_log, scratch_of
from .latency import Latency
from .macs import MacsOfStates
from .moves import UNITS, Move, Moves, State
from .planned import bare_plan, planned
from .progress import SearchProgress
from .replacements import Replacements
from .timer import RuntimeTimer

SEARCH_IMAGES = 200
BATCH_SIZE = 20


def plan_under_budget(
    statistics: Statistics | str | Path,
    model: ModelLike,
    images: ImagesLike,
    *,
    max_drop: float | None = None,
    target_macs: float | None = None,
    target_latency: float | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    search_over: Collection[str] = UNITS,
    labels: str | Path | None = None,
    search_images: int = SEARCH_IMAGES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    rescore: Rescore = "lazy",
    constants: str = "auto",
    window: int | None = None,
    tolerance: float = 0.1,
    compact: Mapping[str, Any] | None = None,
    weight_bits: int = 32,
    activation_bits: int = 32,
    levels: str = "published",
    device: str | None = None,
    search: str | Path | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> Plan:
    """Search for the plan that changes the outputs least for the multiply-accumulates, or the time, that it saves; save it where `out`
    is given.

    From the model that the statistics are of, step by step the change is taken whose KL(original || changed), the mean over
    `search_images` images drawn by `seed` from the folder `images`, grows least for what it saves: a head frozen to its constant, all heads
    of a layer, or a lower rank of a feed-forward block's second projection (`search_over`: any of heads, layers, ranks).
    `target_macs`: stop at this share of the original's multiply-accumulates. `target_latency`: stop at this share of the original's time
    on `runtime` (one of runtimes.NAMES, such as "openvino-int8": both models in that precision) with `threads` (1), batch 1: first it is
    timed what changes save at sites of every shape, and the search takes these savings to add up; in the end the plan's whole model is
    timed beside the original, and where it misses the target the search goes on, at most three times. `max_drop`: allow no state that
    loses more than so many percentage points of top-1 on the images, or without labels of agreement with the original; the last state
    within it is kept.
    Labels are those of the CSV `labels`, of labels.csv in the folder, or of class folders, one for each of the model's classes.
    `rescore`: "lazy" measures moves anew when their scores of earlier states come out best, "all" measures every move in every state.
    `constants`, `window`, `tolerance` are fields of ConstantsPlan, `compact` holds those of CompactPlan but ratio; bits are put into the
    plan, but not measured. `search`: the file that everything measured goes to, beside `out` where it is not given; with `resume` what
    it holds already is not measured again, whatever the budget is now.
    Raises VitfrostError, one line, where things do not fit each other, the runtime is not installed, or the budget cannot be met (then it
    says how near it came).
    """
    budget = asked(max_drop, target_macs, target_latency, runtime, threads, search_over, rescore)
    over = budget.over
    if out is not None:
        refuse_unwritable(out)
    search = search if search is not None or out is None else Path(out).with_suffix(SUFFIX)
    if search is not None:
        refuse_unwritable(search)
    fields = {"unit": "layer" if "heads" not in over else "head", "by": "search", "kind": constants, "window": window,
              "tolerance": tolerance, "seed": seed}  # fmt: skip
    whole = checked(ConstantsPlan, fields, CONSTANTS_NAMES)
    blocks = checked(CompactPlan, dict(compact or {}) | {"ratio": None}, COMPACT_NAMES)
    if blocks.init == "random":
        raise VitfrostError("compact_init is 'random', but a search measures what factors do; give activations or weights")
    quantize = checked(QuantizePlan, {"weight_bits": weight_bits, "activation_bits": activation_bits, "levels": levels})
    known = statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
    loaded = as_model(model)
    images = images if isinstance(images, str | Path) else find_given(images, several=True)
    _check_fits(known, loaded)
    sites = find_sites(loaded.module)
    layers = [computed_layer(site, known.sites[site["name"]].allowed) for site in known.header.sites]

    image_set, batch = _draw(images, labels, loaded.classes, Preprocess(loaded.preprocessing), search_images, seed)
    batches = [part.to(device_of(loaded.module)) for part in batch.pixels.split(batch_size)]
    if not over & {"heads", "layers"} and not sites.feed_forward:
        raise VitfrostError("search_over is ranks, but the model has no feed-forward blocks that can be factorized")
    changed = copy.deepcopy(loaded.module).eval()
    moments = _moments(changed, sites.feed_forward, batches) if "ranks" in over and blocks.init == "activations" else {}
    replacements = Replacements(changed, sites, layers, known, whole, blocks, moments)
    kinds = [[(cast(Kind, head.constant), head.window) for head in heads] for heads in replacements.frozen]
    macs = MacsOfStates(loaded.module, sites, kinds)
    if budget.runtime is None:
        refuse_below(budget, macs.floor(over))
    subject = SearchSubject(
        model=loaded.identity,
        statistics=known.content_hash,
        images=SearchImages(
            images=len(batch.positions), images_hash=images_hash(image_set, batch.digests), seed=seed, skipped=len(batch.skipped),
            labeled=batch.labels is not None,
        ),
        constants=whole.model_dump(mode="json", include={"kind", "window", "tolerance"}),
        compact={"init": blocks.init},
    )  # fmt: skip
    place = None if search is None else Path(search)
    log = open_log(place, subject, budget.plain(), macs.original, torch.get_num_threads(), resume)
    moves = Moves(sites.attention, sites.feed_forward, over)

    def model_of(state: State) -> Artifact:
        factors = blocks.model_copy(update={"init": "weights"})  # their values do not change the time
        return compress(loaded, bare_plan(known, sites, layers, replacements.frozen, state, whole, factors), statistics=known)

    with ExitStack() as stack:
        latency = None
        if budget.runtime is not None:
            scratch = None if place is None else scratch_of(place)
            timer = stack.enter_context(RuntimeTimer(loaded, budget.runtime, images, seed, progress, scratch))
            apart = None if budget.runtime.runtime == "torch" else block_cut_short(loaded.module)
            latency = Latency(timer, model_of, moves, log, budget.runtime.setup(), progress, apart)
            refuse_below(budget, latency.floor(over))
        done = _Searching(EffectMeter(replacements, batches, batch.labels), moves, macs, latency, log, progress)
        found = done.run(budget)
    if not found.met:
        raise VitfrostError(found.said)
    if progress:
        say(f"search: ended at {found.said}")
    made = planned(known, sites, layers, found.state, log.record, whole, blocks, quantize)
    if out is not None:
        save_plan(made, out)
    return made


@dataclass(frozen=True)
class _Ended:
    """How a search ended: `said` is what it came to where the budget is `met`, else why there is no plan."""

    state: State
    met: bool
    said: str


class _Searching:
    """One search with its measurements and its log; what it saves is time where there is a `latency`, else multiply-accumulates."""

    def __init__(self, meter: EffectMeter, moves: Moves, macs: MacsOfStates, latency: Latency | None, log: SearchLog, progress: bool):
        self.meter, self.moves, self.macs, self.latency, self.log = meter, moves, macs, latency, log
        self.progress = SearchProgress(len(moves.possible(moves.start)), enabled=progress)
        if log.known("") is None:
            log.add(self._measured(meter.original, moves.start, None, 0))

    def run(self, budget: Asked) -> _Ended:
        """Search, and write down how it ended."""
        cost: Callable[[State], float] = self.macs.total if self.latency is None else self.latency.share
        goal = Goal(budget.target, budget.max_drop)
        search = Search(self.moves, self.measure, cost, self.meter.original, goal, budget.rescore)

        def took(step: Step) -> None:
            self._took(search, step)

        search.run(took)
        met, latency, corrections = search.met, None, 0
        if self.latency is not None and budget.target is not None:
            met = self.latency.settle(search, budget.target, took)
            latency, corrections = self.latency.outcome(search.state), self.latency.corrections
        share, labeled = self.macs.total(search.state) / self.macs.original, self.meter.labels is not None
        ended = said(search, labeled, share, latency)
        drop = drop_of(search.effect, search.original)
        self.log.change(outcome=SearchEnd(met=met, said=ended, drop=drop, macs_share=share, latency=latency))
        return _Ended(search.state, met, ended if met else how_near(search, budget, ended, labeled, corrections))

    def measure(self, state: State, near: State, move: Move, step: int) -> Effect:
        """From the log where it is known, else from the model."""
        earlier = self.log.known(state.key)
        found = earlier or self._measured(self.meter.measure(state, near), state, move, step)
        if earlier is None:
            self.log.add(found)
        elif (earlier.macs, earlier.latency_share) != (self.macs.total(state), self._latency_share(state)):
            changed = {"macs": self.macs.total(state), "latency_share": self._latency_share(state)}  # another version, or another runtime
            self.log.correct(earlier.model_copy(update=changed))
        self.progress.measured(step, known=earlier is not None)
        return Effect(found.kl, found.kl_error, found.agreement, found.top1, found.seconds)

    def _measured(self, effect: Effect, state: State, move: Move | None, step: int) -> Measurement:
        about = {} if move is None else {"kind": move.kind, "site": move.site, "head": move.head, "rank": move.rank}
        return Measurement(
            step=step, move=None if move is None else move.name, **about, state=state.key, kl=effect.kl, kl_error=effect.kl_error,
            agreement=effect.agreement, top1=effect.top1, macs=self.macs.total(state), latency_share=self._latency_share(state),
            seconds=round(effect.seconds, 3),
        )  # type: ignore[arg-type]  # fmt: skip

    def _latency_share(self, state: State) -> float | None:
        return None if self.latency is None else self.latency.share(state)

    def _took(self, search: Search, step: Step) -> None:
        before = search.steps[-2].state if len(search.steps) > 1 else self.moves.start
        move, frozen = step.move, () if step.move.kind == "rank" else step.state.heads[step.move.place] - before.heads[step.move.place]
        taken = Taken(
            move=move.name, kind=move.kind, site=move.site, head=move.head, heads=tuple(sorted(frozen)), rank=move.rank,
            state=step.state.key, increase=step.increase, kl=step.effect.kl, agreement=step.effect.agreement, top1=step.effect.top1,
            macs=self.macs.total(step.state), macs_share=self.macs.total(step.state) / self.macs.original,
            latency_share=self._latency_share(step.state),
        )  # fmt: skip
        self.log.change(steps=(*self.log.record.steps, taken))
        self.progress.took(len(search.steps), taken)


def _check_fits(statistics: Statistics, loaded: Model) -> None:
    if isinstance(loaded, Artifact) or statistics.header.structure is not None:
        raise VitfrostError(
            "a search starts from a model as timm builds it, with statistics of it; give --model NAME and its own statistics"
        )
    statistics.check_fits(loaded.identity, find_sites(loaded.module).signature())
    if loaded.classes < 2:
        raise VitfrostError(f"{loaded.name} has {loaded.classes} classes; a search compares the outputs of a classifier")


def _draw(
    images: ImagesLike, labels: str | Path | None, classes: int, preprocess: Preprocess, count: int, seed: int
) -> tuple[AnyImages, Batch]:
    """So many usable images of a seeded draw, with labels where there are some of this model's classes."""
    if count < 2:
        raise VitfrostError(f"search images must be at least 2, got {count}")
    if not isinstance(images, str | Path):
        drawn = find_given(images).shuffled(seed)
        return drawn, take_usable(drawn, preprocess, count)
    found = find_images(images, labels, classes, has_reference=True)
    if found.labels is not None and labels is None and not (Path(images) / LABELS_FILE).is_file() and len(set(found.labels)) != classes:
        found = ImageSet(found.root, found.files, None)  # some folders of pictures, but not this model's classes
    drawn = found.shuffled(seed)
    return drawn, take_usable(drawn, preprocess, count)


@torch.no_grad()
def _moments(model: nn.Module, sites: Sequence[Any], batches: Sequence[Tensor]) -> dict[str, InputMoments]:
    """Moments of what the second projections of the original read."""
    blocks = [FeedForwardPlan(site=site.name, width=site.width, hidden=site.hidden, rank=1) for site in sites]
    with watch_inputs(model, blocks) as seen:
        for batch in batches:
            model(batch)
    return seen
