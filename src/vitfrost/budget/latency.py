"""What states of a model cost in time on a runtime: the table of what changes save, and whole models; from the log where it is known."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from ..configs.verbs import Unit
from ..errors import VitfrostError
from ..model import Model
from ..progress import say
from ..timing.rounds import paired_ratio
from ..vit.sites import AttentionSite
from .additive import AdditiveLatency, corrected_target, counts_to_measure, fewest_steps, filled, groups, rotated
from .greedy import GreedySearch, TakenMove
from .history import SearchLog
from .latency_record import Latencies, LatencyOutcome, LatencySetup, TimedChange, TimedModel, change_name
from .moves import Moves, State, ranks_of
from .timer import Timed

# Seconds of timed rounds, beside what exporting takes: of the whole table, and of one whole model.
TABLE_SECONDS, MODEL_SECONDS = 90.0, 25.0
CORRECTIONS = 3
# So far below the target, as a share of the original's time, no steps are given back: whole models are measured no better.
SPARE = 0.01


@runtime_checkable
class Timer(Protocol):
    """What times models beside the original; `RuntimeTimer` does."""

    def time(self, models: Mapping[str, Callable[[], Model]], text: str, seconds: float) -> Timed:
        """Milliseconds of the models and the original in the same rounds."""
        ...


@dataclass(frozen=True)
class SiteGroup:
    """Sites of equal shape, by their places, and the changes that are measured there: numbers of frozen or windowed heads, or ranks."""

    kind: str
    places: tuple[int, ...]
    sites: tuple[str, ...]
    amounts: tuple[int, ...]


def groups_of(moves: Moves, apart: str | None = None) -> list[SiteGroup]:
    """The groups of a model and what a search over these moves needs to know of them. `apart`: a block whose sites are no others' equals,
    as a lean graph computes it for some tokens only."""

    def inside(name: str) -> bool:
        return apart is not None and name.startswith(f"{apart}.")

    found = []
    if moves.over & {"heads", "layers"}:
        for places in groups([(_shape(site), inside(site.name)) for site in moves.attention]):
            amounts = counts_to_measure(moves.attention[places[0]].heads, "heads" in moves.over)
            found.append(SiteGroup("heads", tuple(places), tuple(moves.attention[place].name for place in places), tuple(amounts)))
    if "ranks" in moves.over:
        shapes = [(block.width, block.hidden, block.tokens, block.block, inside(block.name)) for block in moves.feed_forward]
        for places in groups(shapes):
            ranks = tuple(ranks_of(moves.feed_forward[places[0]]))
            if ranks:
                found.append(SiteGroup("rank", tuple(places), tuple(moves.feed_forward[place].name for place in places), ranks))
    windowable = sorted(moves.windowable)
    for numbers in groups([(_shape(site), inside(site.name)) for site in (moves.attention[place] for place in windowable)]):
        places = [windowable[number] for number in numbers]
        amounts = counts_to_measure(moves.attention[places[0]].heads, single=True)
        found.append(SiteGroup("windows", tuple(places), tuple(moves.attention[place].name for place in places), tuple(amounts)))
    return found


def state_of(group: SiteGroup, amount: int, moves: Moves) -> State:
    """The state in which all sites of a group are changed alike."""
    heads, ranks, windows = list(moves.start.heads), list(moves.start.ranks), list(moves.start.windows)
    for turn, place in enumerate(group.places):
        if group.kind == "rank":
            ranks[place] = amount
        else:
            (heads if group.kind == "heads" else windows)[place] = rotated(moves.attention[place].heads, amount, turn)
    return State(tuple(heads), tuple(ranks), tuple(windows))


class Latency:
    """The latency of states on one runtime. `model_of` makes the model of a state; `log` keeps what is timed, at once; `apart`: see
    `groups_of`."""

    def __init__(
        self,
        timer: Timer,
        model_of: Callable[[State], Model],
        moves: Moves,
        log: SearchLog,
        setup: LatencySetup,
        progress: bool,
        apart: str | None = None,
    ):
        self.timer, self.model_of, self.moves, self.log, self.setup, self.progress = timer, model_of, moves, log, setup, progress
        self.apart = apart
        self.corrections, self.given_back, self.failures = 0, 0, 0
        others = [each.setup for each in log.record.latencies if each.setup != setup]
        if others and not self.known.changes and progress:
            say(f"latency: what is known was timed on {others[0].said} ({others[0].versions}, {others[0].cpu}); it is timed again")
        self.model = self._table()

    @property
    def known(self) -> Latencies:
        """What was timed in this setup."""
        return self.log.latencies(self.setup)

    def share(self, state: State) -> float:
        """What is left of the original's time, as what the changes save adds up."""
        return self.model.share([len(heads) for heads in state.heads], state.ranks, [len(heads) for heads in state.windows])

    def floor(self, over: frozenset[Unit]) -> float:
        """The share that a search over these units can come down to."""
        return self.model.floor(single="heads" in over, whole="layers" in over, factorize="ranks" in over, window="windows" in over)

    def settle(self, search: GreedySearch, target: float, on_step: Callable[[TakenMove], None]) -> bool:
        """Time what a search came to. Where it takes longer than the target, the search goes on to a prediction that is lower as what was
        predicted was more than what was saved, at most `CORRECTIONS` times. Where it takes less than was asked for, the last steps are
        given back. Where it cannot be timed, its last step is taken back and the search goes on, as often. Whether the target is met."""
        missed = 0
        while search.steps:
            timed, predicted = self.timed(search.state), self.share(search.state)
            if timed is None:
                if self.failures == CORRECTIONS:
                    return False
                self.failures += 1
                search.take_back()
                self.log.change(steps=self.log.record.steps[:-1])
                search.run(on_step)
                continue
            ratio = timed.ratio
            if ratio <= target:
                self._give_back(search, target, missed)
                return True
            missed = len(search.steps)
            wanted = corrected_target(target, predicted, ratio)
            if not search.met or wanted is None or self.corrections == CORRECTIONS:
                return False
            if self.progress:
                say(f"latency: {ratio:.3f} where {predicted:.3f} was predicted; the search goes on to {wanted:.3f} predicted")
            steps = len(search.steps)
            search.goal = replace(search.goal, target=wanted)
            search.run(on_step)
            if len(search.steps) == steps:  # nothing more can be changed
                return False
            self.corrections += 1
        return False

    def _give_back(self, search: GreedySearch, target: float, missed: int) -> None:
        """Take steps back that the target does not need; after `missed` steps it was not reached. Nothing is timed where the last step is
        needed if savings are as much more or less than predicted as those of all steps."""
        steps = len(search.steps)
        ratio, (fewer, all_of_them) = self._ratio(search.state), [self.share(each) for each in (search.before, search.state)]
        if all_of_them < 1 and 1 - (1 - fewer) * (1 - ratio) / (1 - all_of_them) > target:
            return
        kept = fewest_steps(lambda count: self._ratio(search.steps[count - 1].state), target, missed, steps, SPARE)
        self.given_back = steps - kept
        if self.given_back:
            if self.progress:
                before, after = (self._ratio(search.steps[count - 1].state) for count in (steps, kept))
                say(f"latency: {before:.3f} is more than was asked for; {self.given_back} of {steps} steps are given back, {after:.3f}")
            del search.steps[kept:]
            self.log.change(steps=self.log.record.steps[:kept])

    def outcome(self, state: State) -> LatencyOutcome:
        """What is known of the state that a search ended at."""
        return LatencyOutcome(
            setup=self.setup,
            predicted=self.share(state),
            measured=self.known.model(state.key),
            corrections=self.corrections,
            given_back=self.given_back,
        )

    def _ratio(self, state: State) -> float:
        """What is left of the time; infinite where the model cannot be timed."""
        found = self.timed(state)
        return float("inf") if found is None else found.ratio

    def timed(self, state: State) -> TimedModel | None:
        """The whole model of a state beside the original; None where it cannot be timed, which is noted."""
        found = self.known.model(state.key)
        if found is None and self.log.left_out(state.key, self.setup) is None:
            timed = self.timer.time({"the plan's model": lambda: self.model_of(state)}, f"latency on {self.setup.said}", MODEL_SECONDS)
            for what, why in timed.failed.items():
                self.log.leave_out(state.key, what, why, self.setup)
                return None
            (rounds,) = timed.models.values()
            ratio, low, high = paired_ratio(rounds, timed.original, 0)
            found = TimedModel(
                state=state.key, predicted=self.share(state), ratio=ratio, interval=(low, high), ms=statistics.median(rounds),
                original_ms=statistics.median(timed.original), rounds=len(rounds), other_load=timed.other_load,
            )  # fmt: skip
            self.log.keep(self.known.model_copy(update={"models": (*self.known.models, found)}))
        return found

    def _table(self) -> AdditiveLatency:
        wanted = groups_of(self.moves, self.apart)
        heads = [(0.0,) * (site.heads + 1) for site in self.moves.attention]
        windows = list(heads)
        ranks: list[dict[int, float]] = [{} for _ in self.moves.feed_forward]
        for number, group in enumerate(wanted, 1):
            saved = self._saved(group, f"latency on {self.setup.said}, table {number} of {len(wanted)}", TABLE_SECONDS / len(wanted))
            for place in group.places:
                if group.kind == "rank":
                    ranks[place] = saved
                else:
                    (heads if group.kind == "heads" else windows)[place] = filled(self.moves.attention[place].heads, saved)
        if wanted and not self.known.changes:
            raise VitfrostError(f"no change can be timed on {self.setup.said}; the first: {self.log.record.left_out[-1].why}")
        return AdditiveLatency(tuple(heads), tuple(ranks), tuple(windows))

    def _saved(self, group: SiteGroup, text: str, seconds: float) -> dict[int, float]:
        """The share of the original's time that each change of a group saves at one site; 0 where it cannot be timed, which is noted."""
        keys = {amount: state_of(group, amount, self.moves).key for amount in group.amounts}
        missing = [
            amount
            for amount in group.amounts
            if self.known.change(group.kind, group.sites, amount) is None and self.log.left_out(keys[amount], self.setup) is None
        ]
        if missing:
            names = {amount: change_name(group.kind, amount) for amount in missing}
            where = f" at {group.sites[0]}" + ("" if len(group.sites) == 1 else f" and {len(group.sites) - 1} like it")
            timed = self.timer.time({name + where: self._making(group, amount) for amount, name in names.items()}, text, seconds)
            for amount in missing:
                if (why := timed.failed.get(names[amount] + where)) is not None:
                    self.log.leave_out(keys[amount], names[amount] + where, why, self.setup)
            original_ms = statistics.median(timed.original) if timed.original else None
            made = []
            for amount in missing:
                if (rounds := timed.models.get(names[amount] + where)) is None or original_ms is None:
                    continue
                ratio, low, high = ((1 - value) / len(group.sites) for value in paired_ratio(rounds, timed.original, 0))
                made.append(TimedChange(
                    kind=group.kind, sites=group.sites, amount=amount, saved=ratio, interval=(high, low), saved_ms=ratio * original_ms,
                    rounds=len(rounds), other_load=timed.other_load,
                ))  # type: ignore[arg-type]  # fmt: skip
            known = self.known
            self.log.keep(known.model_copy(update={"changes": (*known.changes, *made), "original_ms": known.original_ms or original_ms}))
        found = {amount: self.known.change(group.kind, group.sites, amount) for amount in group.amounts}
        return {amount: 0.0 if change is None else change.saved for amount, change in found.items()}

    def _making(self, group: SiteGroup, amount: int) -> Callable[[], Model]:
        return lambda: self.model_of(state_of(group, amount, self.moves))


def _shape(site: AttentionSite) -> tuple[object, ...]:
    """What the time of a site depends on."""
    return (*site.maps_shape, site.head_dim, site.width, site.prefix_tokens, site.grid, site.key_grid)
