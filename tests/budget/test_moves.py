"""What can be changed next, what a state costs, and what the search takes: against arithmetic and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from vitfrost.budget.effects import Effect
from vitfrost.budget.greedy import Goal, GreedySearch
from vitfrost.budget.macs import MacsOfStates
from vitfrost.budget.moves import Move, Moves, State
from vitfrost.configs import Compact, FreezeHeads, Quantize
from vitfrost.evaluation.cost import macs_by_part
from vitfrost.identity import Identity
from vitfrost.map_sources.frozen import shape_of
from vitfrost.passes.structure import install_structure
from vitfrost.plans.choose import computed_layer
from vitfrost.plans.compact import FeedForwardPlan
from vitfrost.plans.freeze_heads import choose_kind
from vitfrost.plans.schema import Plan
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model
from vitfrost.vit.sites import AttentionSite, FeedForwardSite


def small(layers: int = 2, heads: int = 2) -> Moves:
    attention = [AttentionSite(f"{n}.attn", n, heads, 8, 16, 5, 5, 1, (2, 2)) for n in range(layers)]
    return Moves(attention, [FeedForwardSite(f"{n}.mlp", n, 16, 64, 5) for n in range(layers)], ("heads", "layers", "ranks"))


def test_moves_of_a_state() -> None:
    moves = small()
    assert [move.name for move in moves.possible(moves.start)] == [
        "0.attn head 0", "0.attn head 1", "0.attn all heads", "1.attn head 0", "1.attn head 1", "1.attn all heads",
        "0.mlp rank 12", "0.mlp rank 11", "0.mlp rank 8", "1.mlp rank 12", "1.mlp rank 11", "1.mlp rank 8",
    ]  # fmt: skip
    state = State((frozenset({1}), frozenset({0, 1})), (None, 11))
    assert [move.name for move in moves.possible(state)] == [
        "0.attn head 0", "0.mlp rank 12", "0.mlp rank 11", "0.mlp rank 8", "1.mlp rank 8",
    ]  # fmt: skip
    assert state.key == "attention 0: 1; attention 1: 0 1; rank 1: 11"
    assert moves.applied(Move("layer", "0.attn", 0), state).heads[0] == {0, 1}
    assert not moves.possible(moves.end)


@pytest.mark.parametrize("constants", ["auto", "dense", "local"])
@pytest.mark.parametrize("which", ["cls", "distilled", "average", "swin", "pvt"])
def test_costs_are_those_of_the_changed_model(models: Any, which: str, constants: str) -> None:
    loaded, statistics = models[which].model, models[which].statistics
    if which == "pvt" and constants == "local":
        pytest.skip("its maps have no patch grid")
    settings = FreezeHeads(kind=constants, window=3 if constants == "local" else None)  # type: ignore[arg-type]
    sites = find_sites(loaded.module)
    layers = [computed_layer(site, statistics.sites[site["name"]].allowed) for site in statistics.header.sites]
    size = statistics.header.model.image_size
    heads = [
        [choose_kind(settings, layer, statistics.sites[layer.site], shape_of(layer, size), head)[0] for head in range(len(layer.heads))]
        for layer in layers
    ]
    costs = MacsOfStates(loaded.module, sites, [[(head.constant, head.window) for head in of_layer] for of_layer in heads])  # type: ignore[misc]
    frozen = [{0}, set(range(sites.attention[1].heads)), *({1} if site.heads > 1 else set() for site in sites.attention[2:])]
    state = State(tuple(map(frozenset, frozen)), tuple(site.width // 2 for site in sites.feed_forward))
    plan = Plan(
        model=Identity.model_validate(loaded.identity), constants=settings, compact=Compact(ratio=None),
        quantize=Quantize(32, 32),
        layers=tuple(
            layer.model_copy(update={"heads": tuple(own[n] if n in chosen else head for n, head in enumerate(layer.heads))})
            for layer, own, chosen in zip(layers, heads, frozen, strict=True)
        ),
        feed_forward=tuple(
            FeedForwardPlan(site=site.name, width=site.width, hidden=site.hidden, rank=rank)
            for site, rank in zip(sites.feed_forward, state.ranks, strict=True)
        ),
    )  # fmt: skip
    made = create_model(loaded.name, loaded.image_size, **loaded.options)
    assert costs.total(state) == sum(macs_by_part(made, install_structure(made, plan)).values())
    assert costs.total(Moves(sites.attention, sites.feed_forward, ()).start) == sum(macs_by_part(loaded.module, sites).values())


def random_world(moves: Moves, seed: int) -> dict[str, float]:
    """A divergence for every state: more or less additive, with interactions."""
    random = torch.Generator().manual_seed(seed)
    table: dict[str, float] = {}

    def of(state: State) -> float:
        if state.key not in table:
            parts = [part for part in state.key.split("; ") if part]
            table[state.key] = sum(len(part) for part in parts) * 0.01 + float(torch.rand((), generator=random)) * 0.3
        return table[state.key]

    subsets = [frozenset(chosen) for count in range(3) for chosen in itertools.combinations(range(2), count)]
    for heads in itertools.product(subsets, repeat=2):
        for ranks in itertools.product((None, 12, 11, 8), repeat=2):
            of(State(heads, ranks))
    table[""] = 0.0
    return table


def cost(state: State) -> float:
    return 100 - sum(4 * len(heads) for heads in state.heads) - sum(0 if rank is None else 16 - rank for rank in state.ranks)


@pytest.mark.parametrize("seed", range(8))
def test_with_all_scores_measured_every_step_is_the_best_one(seed: int) -> None:
    moves = small()
    world = random_world(moves, seed)
    measured: list[str] = []

    def measure(state: State, near: State, move: Move, step: int) -> Effect:
        measured.append(state.key)
        return Effect(world[state.key], 0.0, 100.0, None)

    search = GreedySearch(moves, measure, cost, Effect(0.0, 0.0, 100.0, None), Goal(target=0.75), rescore="all")
    search.run()
    state = moves.start
    for step in search.steps:
        grown = {
            move: (max(world[after.key] - world[state.key], 0) / (cost(state) - cost(after)), world[after.key] - world[state.key])
            for move in moves.possible(state)
            if cost(after := moves.applied(move, state)) < cost(state)
        }
        assert grown[step.move] == min(grown.values())
        state = moves.applied(step.move, state)
        assert step.state == state
    assert search.met
    assert cost(state) <= 75 < cost(search.steps[-2].state)


def test_lazy_scores_give_the_same_where_effects_add_up_and_measure_less() -> None:
    moves = small(layers=4, heads=3)
    found = {}
    for rescore in ("lazy", "all"):
        measured = []

        def measure(state: State, near: State, move: Move, step: int, measured: list[str] = measured) -> Effect:
            measured.append(state.key)
            heads = sum(0.1 * (place + 1) ** 2 + 0.01 * head for place, chosen in enumerate(state.heads) for head in chosen)
            ranks = sum(0.07 * (16 - rank) * (place + 1) for place, rank in enumerate(state.ranks) if rank is not None)
            return Effect(heads + ranks, 0.0, 100.0, None)

        search = GreedySearch(moves, measure, cost, Effect(0.0, 0.0, 100.0, None), Goal(target=0.6), rescore=rescore)  # type: ignore[arg-type]
        search.run()
        found[rescore] = ([step.move for step in search.steps], len(measured))
    assert found["lazy"][0] == found["all"][0]
    assert len(found["lazy"][0]) > 5
    assert found["lazy"][1] < 0.5 * found["all"][1]


def test_a_move_that_drops_too_much_is_left_out_and_the_search_goes_on() -> None:
    moves = small()

    def measure(state: State, near: State, move: Move, step: int) -> Effect:
        return Effect(0.001 * (100 - cost(state)), 0.0, 40.0 if 0 in state.heads[0] else 99.5, None)

    search = GreedySearch(moves, measure, cost, Effect(0.0, 0.0, 100.0, None), Goal(max_drop=0.5))
    search.run()
    assert search.state.heads[0] == {1}
    assert search.state.heads[1] == {0, 1}
    assert search.state.ranks == (8, 8)
    assert {move.name for move in search.set_aside} == {"0.attn head 0"}


def test_labels_count_where_there_are_some() -> None:
    moves = small()

    def measure(state: State, near: State, move: Move, step: int) -> Effect:
        return Effect(0.1, 0.0, 50.0, 70.0 if state.ranks == (None, None) else 60.0)

    search = GreedySearch(moves, measure, cost, Effect(0.0, 0.0, 100.0, 70.4), Goal(max_drop=0.5))
    search.run()
    assert search.state == State((frozenset({0, 1}), frozenset({0, 1})), (None, None))
