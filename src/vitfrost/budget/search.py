"""The verb `search`: the plan that a greedy search comes to, by what every change does to the model's outputs on images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact import Artifact
from ..configs import Search
from ..errors import VitfrostError
from ..evaluation.evaluate import find_images
from ..files import refuse_unwritable
from ..identity import Identity
from ..images.batches import Batch, images_hash, take_usable
from ..images.given import AnyImages, ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..methods.low_rank.moments import InputMoments
from ..model import Model, ModelLike, as_model
from ..passes.compress import compress
from ..passes.structure import watch_inputs
from ..plans.choose import computed_layer
from ..plans.compact import FeedForwardPlan
from ..plans.fits import check_bits
from ..plans.schema import Plan
from ..progress import doing, say
from ..runtime.runtimes import reason_of
from ..statistics.record import Statistics
from ..torch_state import usual_torch
from ..vit.families import find_sites
from ..vit.lean import block_cut_short
from ..vit.load import device_of
from ..vit.sites import ModelSites
from .effects import Effect, EffectMeter
from .greedy import Goal, GreedySearch, TakenMove, drop_of
from .history import SUFFIX, Measurement, SearchEnd, SearchImages, SearchLog, SearchSubject, Taken, open_log, scratch_of
from .latency import Latency
from .macs import MacsOfStates
from .methods import SearchMethod, SearchMethods
from .moves import Move, Moves, State
from .outcome import SearchProgress, how_near, recorded, refuse_below, said, target_of
from .planned import bare_plan, planned
from .replacements import Replacements
from .runtimes import Target, find_target
from .timer import RuntimeTimer
from .windows import find_windows, refuse_slow_windows


@usual_torch()
@torch.random.fork_rng(devices=[])  # layers draw weights when they are made
def search(
    model: ModelLike,
    images: ImagesLike,
    budget: Search,
    *methods: SearchMethod,
    statistics: Statistics | str | Path,
    labels: str | Path | None = None,
    record: str | Path | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> Plan:
    """Search for the plan that changes the outputs least for the multiply-accumulates, or the time, that it saves.

    Step by step the change is taken whose KL(original || changed), the mean over the images, grows least for what it saves (see `moves`).
    Of features it is their relative error, and what may be lost are points of agreement of nearest neighbors.
    With a target latency, savings are timed first, once per shape of site, and taken to add up; last, the plan's whole model is timed;
    where it misses the target the search goes on, at most three times, and where it saves more, the last changes are given back.

    Args:
        model: as of every verb, but no artifact.
        images: a folder or an iterable (see images.given) that the images to measure on are drawn from.
        budget: what the plan may cost, and how to search.
        methods: how heads are frozen and windowed and blocks compacted, without shares; and the plan's bits (32), which are not measured.
        statistics: those of the model, or their file.
        labels: CSV with the columns file and label. If not given: labels.csv in the folder, or class folders, one for each class.
        record: file for everything that is measured; beside `out`, named like it, if not given.
        resume: go on with the record: what it holds is not measured again, whatever the budget is now.
        out: file for the plan.

    Raises VitfrostError where things do not fit each other, the runtime is not installed, or the budget cannot be met (it says how near).
    """
    how = SearchMethods.of(methods, budget)
    target = _target(budget, how)
    over = frozenset(budget.over)
    place = _place_of_record(record, out)
    images = images if isinstance(images, str | Path) else find_given(images, several=True)
    loaded, known = as_model(model), statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
    sites = _fitting_sites(known, loaded, how)
    layers = [computed_layer(site, known.sites[site["name"]].allowed) for site in known.header.sites]
    windows = find_windows(how.window, sites.attention, layers, known)

    doing("search: read images")
    image_set, batch = _draw(images, labels, loaded, Preprocess(loaded.preprocessing), budget.images, budget.seed)
    batches = [part.to(device_of(loaded.module)) for part in batch.pixels.split(budget.batch_size)]
    if over == {"ranks"} and not sites.feed_forward:
        raise VitfrostError("Search.over is ranks, but the model has no feed-forward blocks that can be factorized")
    changed = copy.deepcopy(loaded.module).eval()
    moments = _moments(changed, sites.feed_forward, batches) if "ranks" in over and how.compact.init == "activations" else {}
    doing("search: fit the constants of all heads")
    replacements = Replacements(changed, sites, layers, known, how.freeze, how.compact, moments, windows)
    macs = MacsOfStates(loaded.module, sites, replacements.kinds, None if windows is None else windows.macs)
    if target is None:
        refuse_below(budget, macs.floor(over))
    subject = _subject(loaded, known, _drawn(image_set, batch, budget.seed), how)
    log = open_log(place, subject, recorded(budget), macs.original, torch.get_num_threads(), resume)
    moves = Moves(sites.attention, sites.feed_forward, over, macs.windowed)

    def model_of(state: State) -> Artifact:
        factors = replace(how, compact=replace(how.compact, init="weights"))  # their values do not change the time
        return compress(loaded, bare_plan(known, sites, replacements, state, factors), statistics=known)

    with ExitStack() as stack:
        latency = None
        if target is not None:
            scratch = None if place is None else scratch_of(place)
            timer = stack.enter_context(RuntimeTimer(loaded, target, images, budget.seed, progress, scratch))
            apart = None if target.runtime == "torch" else block_cut_short(loaded.module)
            latency = Latency(timer, model_of, moves, log, target.setup(), progress, apart)
            refuse_below(budget, latency.floor(over))
        done = _Searching(EffectMeter(replacements, batches, batch.labels, outputs=loaded.outputs), moves, macs, latency, log, progress)
        found = done.run(budget)
    if not found.met:
        raise VitfrostError(found.said + _failures(log))
    if progress:
        say(f"search: ended at {found.said}")
    made = planned(known, sites, layers, found.state, log.record, how, windows)
    if out is not None:
        made.save(out)
    return made


def _failures(log: SearchLog) -> str:
    failed = log.record.left_out
    return f"; {len(failed)} changes failed and were left out, the first, {failed[0].what}: {failed[0].why}" if failed else ""


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
        self.progress = SearchProgress(len(moves.possible(moves.start)), enabled=progress, outputs=meter.outputs)
        if log.known("") is None:
            log.add(self._measured(meter.original, moves.start, None, 0))

    def run(self, budget: Search) -> _Ended:
        """Search, and write down how it ended."""
        cost: Callable[[State], float] = self.macs.total if self.latency is None else self.latency.share
        goal = Goal(target_of(budget), budget.max_drop)
        search = GreedySearch(self.moves, self.measure, cost, self.meter.original, goal, budget.rescore)

        def took(step: TakenMove) -> None:
            self._took(search, step)

        search.run(took)
        met, latency, corrections = search.met, None, 0
        if self.latency is not None and (target := target_of(budget)) is not None:
            met = self.latency.settle(search, target, took)
            latency, corrections = self.latency.outcome(search.state), self.latency.corrections
        share, labeled = self.macs.total(search.state) / self.macs.original, self.meter.labels is not None
        ended = said(search, labeled, share, latency)
        drop = drop_of(search.effect, search.original)
        self.log.change(outcome=SearchEnd(met=met, said=ended, drop=drop, macs_share=share, latency=latency))
        return _Ended(search.state, met, ended if met else how_near(search, budget, ended, labeled, corrections))

    def measure(self, state: State, near: State, move: Move, step: int) -> Effect | None:
        """From the log where it is known, else from the model; None where that fails, which is noted."""
        earlier = self.log.known(state.key)
        if earlier is None:
            if self.log.left_out(state.key) is not None:
                return None
            try:
                effect = self.meter.measure(state, near)
            except Exception as error:  # what one change raises, linear algebra's own types too, does not end the others
                self.log.leave_out(state.key, move.name, reason_of(error))
                return None
            found = self._measured(effect, state, move, step)
            self.log.add(found)
        else:
            found = earlier
            if (earlier.macs, earlier.latency_share) != (self.macs.total(state), self._latency_share(state)):
                changed = {
                    "macs": self.macs.total(state),
                    "latency_share": self._latency_share(state),
                }  # another version, or another runtime
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

    def _took(self, search: GreedySearch, step: TakenMove) -> None:
        move, place = step.move, step.move.place
        frozen = () if move.kind in ("rank", "window") else step.state.heads[place] - search.before.heads[place]
        taken = Taken(
            move=move.name, kind=move.kind, site=move.site, head=move.head, heads=tuple(sorted(frozen)), rank=move.rank,
            state=step.state.key, increase=step.increase, kl=step.effect.kl, agreement=step.effect.agreement, top1=step.effect.top1,
            macs=self.macs.total(step.state), macs_share=self.macs.total(step.state) / self.macs.original,
            latency_share=self._latency_share(step.state),
        )  # fmt: skip
        self.log.change(steps=(*self.log.record.steps, taken))
        self.progress.took(len(search.steps), taken)


def _target(budget: Search, how: SearchMethods) -> Target | None:
    """The runtime that times are of. Raises VitfrostError where it is not there, or has no faster form of windowed heads."""
    found = None if budget.runtime is None else find_target(budget.runtime, budget.threads or 1)
    refuse_slow_windows(how.window, found)
    return found


def _place_of_record(record: str | Path | None, out: str | Path | None) -> Path | None:
    """Where measurements are kept: beside the plan unless said otherwise. Raises VitfrostError for places that cannot be written."""
    if out is not None:
        refuse_unwritable(out)
        record = Path(out).with_suffix(SUFFIX) if record is None else record
    if record is None:
        return None
    refuse_unwritable(record)
    return Path(record)


def _drawn(image_set: AnyImages, batch: Batch, seed: int) -> SearchImages:
    """For the record: which images are measured on."""
    return SearchImages(
        images=len(batch.positions), images_hash=images_hash(image_set, batch.digests), seed=seed, skipped=len(batch.skipped),
        labeled=batch.labels is not None,
    )  # fmt: skip


def _subject(loaded: Model, known: Statistics, drawn: SearchImages, how: SearchMethods) -> SearchSubject:
    """What the measurements depend on."""
    constants = {name: getattr(how.freeze, name) for name in ("kind", "window", "tolerance")}
    return SearchSubject(
        model=Identity.model_validate(loaded.identity), statistics=known.content_hash, images=drawn, constants=constants,
        compact={"init": how.compact.init}, outputs=loaded.outputs,
        windowed=None if how.window is None else {name: getattr(how.window, name) for name in ("window", "outside")},
    )  # fmt: skip


def _fitting_sites(statistics: Statistics, loaded: Model, how: SearchMethods) -> ModelSites:
    """The model's sites. Raises VitfrostError for statistics of another model, and for a model that is changed or no classifier."""
    if isinstance(loaded, Artifact) or statistics.header.structure is not None:
        raise VitfrostError(
            "a search starts from a model as timm builds it, with statistics of it; give --model NAME and its own statistics"
        )
    sites = find_sites(loaded.module)
    statistics.check_fits(loaded.identity, sites.signature())
    if loaded.outputs == "classes" and loaded.classes < 2:
        raise VitfrostError(f"{loaded.name} has {loaded.classes} classes; a search compares the outputs of a classifier, or features")
    check_bits(how.quantize, loaded.name, sites)
    return sites


def _draw(
    images: ImagesLike, labels: str | Path | None, loaded: Model, preprocess: Preprocess, count: int, seed: int
) -> tuple[AnyImages, Batch]:
    """So many usable images of a seeded draw, with labels where there are some of this model's classes."""
    if loaded.outputs != "classes" and labels is not None:
        raise VitfrostError(f"{loaded.name} gives features, whose distance from the original needs no labels; leave labels out")
    if loaded.outputs != "classes" or not isinstance(images, str | Path):
        given = find_given(images).shuffled(seed)
        batch = take_usable(given, preprocess, count)
        return given, batch if loaded.outputs == "classes" else replace(batch, labels=None)
    found = find_images(images, labels, loaded.class_space, has_reference=True)
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
