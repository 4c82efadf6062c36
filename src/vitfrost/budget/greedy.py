"""The greedy search: step by step the move with the least divergence for what it saves. Knows neither models nor files.

Scores change as the model does. `lazy`: scores of earlier states stay until they come out best; then they are measured anew, and the move
is taken once it stays best (as in lazy greedy maximization, Minoux 1978). `all`: every move is measured in every state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..configs.verbs import Rescore
from .effects import Effect
from .moves import Move, Moves, State

# Moves in a row that would break --max-drop before the search ends.
PATIENCE = 8

Measure = Callable[[State, State, Move, int], Effect | None]
"""(state after the move, state before it, move, steps taken before) -> its effect; None where it cannot be measured."""


@dataclass(frozen=True)
class TakenMove:
    """One move that was taken. `increase`: of the divergence in nats; `cost`: share of the original's that is left."""

    move: Move
    state: State
    effect: Effect
    increase: float
    cost: float


@dataclass(frozen=True)
class Goal:
    """When a search ends: at a share of the original's cost, or before agreement (or top-1) drops by more than `max_drop` points."""

    target: float | None = None
    max_drop: float | None = None

    def allows(self, drop: float) -> bool:
        """Whether a drop in percentage points is within the goal (a hair of rounding is)."""
        return self.max_drop is None or drop <= self.max_drop + 1e-9

    def reached(self, cost: float) -> bool:
        """Whether a share of the cost is low enough to stop."""
        return self.target is not None and cost <= self.target


def drop_of(effect: Effect, original: Effect) -> float:
    """Percentage points lost: of top-1 where there are labels, else of agreement with the original."""
    if effect.top1 is None or original.top1 is None:
        return original.agreement - effect.agreement
    return original.top1 - effect.top1


@dataclass
class _Scored:
    move: Move
    order: int
    score: tuple[float, float]  # divergence per share of cost, where it grows; then its growth
    effect: Effect | None = None  # of the state that the search is at
    fresh: bool = False


@dataclass
class GreedySearch:
    """The state of a search: `steps` taken so far, moves `set_aside` because they would break the drop, and those that `failed`."""

    moves: Moves
    measure: Measure
    cost: Callable[[State], float]
    original: Effect
    goal: Goal
    rescore: Rescore = "lazy"
    steps: list[TakenMove] = field(default_factory=list)
    set_aside: set[Move] = field(default_factory=set)
    failed: set[Move] = field(default_factory=set)
    _scored: dict[Move, _Scored] = field(default_factory=dict)
    _begun: bool = False

    @property
    def state(self) -> State:
        """Where the search is."""
        return self.steps[-1].state if self.steps else self.moves.start

    @property
    def before(self) -> State:
        """Where it was before the last step."""
        return self.steps[-2].state if len(self.steps) > 1 else self.moves.start

    @property
    def effect(self) -> Effect:
        """What that does to the outputs."""
        return self.steps[-1].effect if self.steps else self.original

    @property
    def cost_left(self) -> float:
        """Share of the original's cost."""
        return self.cost(self.state) / self.cost(self.moves.start)

    @property
    def met(self) -> bool:
        """Whether the target is reached; without one, whether anything was changed."""
        return self.goal.reached(self.cost_left) if self.goal.target is not None else bool(self.steps)

    def run(self, on_step: Callable[[TakenMove], None] | None = None) -> None:
        """Take moves until the goal is reached or nothing more is possible. The first round measures every move alone.

        Called again, after the goal was set further, it goes on from where it is.
        """
        failed = 0
        if not self._begun:
            self._score_all()
            self._begun = True
        while not self.goal.reached(self.cost_left) and failed < PATIENCE:
            best = self._best()
            if best is None or best.effect is None:
                return
            if not self.goal.allows(drop_of(best.effect, self.original)):
                self.set_aside.add(best.move)
                del self._scored[best.move]
                failed += 1
                continue
            failed = 0
            step = self._take(best)
            if on_step is not None:
                on_step(step)

    def _take(self, best: _Scored) -> TakenMove:
        assert best.effect is not None
        state = self.moves.applied(best.move, self.state)
        share = self.cost(state) / self.cost(self.moves.start)
        step = TakenMove(best.move, state, best.effect, best.effect.kl - self.effect.kl, share)
        self.steps.append(step)
        possible = {move for _, move in self._possible(state)}
        self._scored = {move: known for move, known in self._scored.items() if move in possible}
        for known in self._scored.values():
            known.fresh, known.effect = False, None
            if known.move.site == best.move.site and known.move.kind in ("layer", "rank"):
                known.score = (float("-inf"), 0.0)  # the move is another one now, so its score says nothing
        if self.rescore == "all":
            self._score_all()
        return step

    def _score_all(self) -> None:
        for order, move in self._possible(self.state):
            self._score(_Scored(move, order, (0.0, 0.0)))

    def _possible(self, state: State) -> list[tuple[int, Move]]:
        """Moves that may still be taken, with their place among all."""
        return [
            (order, move) for order, move in enumerate(self.moves.possible(state)) if move not in self.set_aside and move not in self.failed
        ]

    def take_back(self) -> Move:
        """Take the last step back, and never take its move again; `run` then goes on from the state before."""
        move = self.steps.pop().move
        self.failed.add(move)
        self._scored, self._begun = {}, False
        return move

    def _score(self, known: _Scored) -> None:
        """Measure a move from the current state; moves that save nothing are dropped, and those that cannot be measured."""
        state = self.moves.applied(known.move, self.state)
        saved = (self.cost(self.state) - self.cost(state)) / self.cost(self.moves.start)
        if saved <= 0:
            self._scored.pop(known.move, None)
            return
        effect = self.measure(state, self.state, known.move, len(self.steps))
        if effect is None:
            self.failed.add(known.move)
            self._scored.pop(known.move, None)
            return
        increase = effect.kl - self.effect.kl
        known.score, known.effect, known.fresh = (max(increase, 0.0) / saved, increase), effect, True
        self._scored[known.move] = known

    def _best(self) -> _Scored | None:
        """The best move, measured from the current state; of equal ones the first."""
        while self._scored:
            best = min(self._scored.values(), key=lambda known: (known.score, known.order))
            if best.fresh:
                return best
            self._score(best)
        return None
