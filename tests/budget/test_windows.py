"""Searches that window heads: the moves and what they cost against brute force, plans that hold what was measured, resuming, refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitfrost
from vitfrost.budget import search as verb
from vitfrost.budget.additive import AdditiveLatency
from vitfrost.budget.effects import Effect
from vitfrost.budget.greedy import Goal, GreedySearch
from vitfrost.budget.history import OtherSearch, load_search
from vitfrost.budget.latency import groups_of, state_of
from vitfrost.budget.macs import MacsOfStates
from vitfrost.budget.moves import Move, Moves, State
from vitfrost.budget.runtimes import Target
from vitfrost.budget.timer import Timed
from vitfrost.budget.windows import refuse_slow_windows
from vitfrost.configs import FreezeHeads, WindowHeads
from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.windowed_heads import windowed_macs
from vitfrost.plans.schema import Plan
from vitfrost.vit.families import find_sites
from vitfrost.vit.sites import AttentionSite

from .searching import QUICK, search
from .test_under_budget import checked, drawn

BOTH: dict[str, Any] = QUICK | {"images": 4, "over": ("heads", "windows")}
NEAR = FreezeHeads(kind="local", window=3), WindowHeads(window=3)


def small(over: Any = ("heads", "layers", "windows"), windowable: Any = (0, 2)) -> Moves:
    return Moves([AttentionSite(f"{n}.attn", n, 2, 8, 16, 17, 17, 1, (4, 4)) for n in range(3)], [], over, windowable)


def test_moves_of_a_state() -> None:
    moves = small(windowable=(0,))
    assert [move.name for move in moves.possible(moves.start)][-2:] == ["0.attn head 0 windowed", "0.attn head 1 windowed"]
    state = moves.applied(Move("window", "0.attn", 0, head=1), moves.start)
    assert state.key == "windows 0: 1"
    assert [move.name for move in moves.possible(state) if move.place == 0] == [
        "0.attn head 0", "0.attn head 1", "0.attn all heads", "0.attn head 0 windowed",
    ]  # fmt: skip
    for freezes in (Move("head", "0.attn", 0, head=1), Move("layer", "0.attn", 0)):
        frozen = moves.applied(freezes, state)
        assert 1 in frozen.heads[0]
        assert not any(frozen.windows)
        assert "windows" not in frozen.key
    assert State(state.heads, state.ranks) == moves.start
    assert not small(("heads", "layers")).windowable
    assert small(("windows",)).end.windows == ({0, 1}, frozenset(), {0, 1})


@given(st.lists(st.integers(0, 99), max_size=14))
def test_no_head_is_frozen_and_windowed_and_every_move_leads_on(choices: list[int]) -> None:
    moves, seen = small(), set()
    state = moves.start
    for choice in choices:
        possible = moves.possible(state)
        if not possible:
            break
        seen.add(state.key)
        state = moves.applied(possible[choice % len(possible)], state)
        assert state.key not in seen
        assert not any(frozen & windowed for frozen, windowed in zip(state.heads, state.windows, strict=True))
        assert not state.windows[1]
    assert (not moves.possible(state)) == (state == moves.end)


def cost(state: State) -> float:
    return 100 - sum(4 * len(heads) for heads in state.heads) - sum(2 * len(heads) for heads in state.windows)


def test_a_windowed_head_is_frozen_by_what_that_does_then() -> None:
    """Lazily and with all scores anew: what a windowed head's old score says of freezing it is too little."""
    found = []
    for rescore in ("lazy", "all"):

        def measure(state: State, near: State, move: Move, step: int) -> Effect:
            heads = zip(state.heads, state.windows, strict=True)
            return Effect(sum(0.5 * len(frozen) + 0.2 * len(windowed) for frozen, windowed in heads), 0.0, 100.0, None)

        goal = Goal(target=0.78)
        search = GreedySearch(small(("heads", "windows")), measure, cost, Effect(0.0, 0.0, 100.0, None), goal, rescore)  # type: ignore[arg-type]
        search.run()
        assert search.met
        found.append([step.move for step in search.steps])
    assert found[0] == found[1]
    assert [move.kind for move in found[0]] == ["window"] * 4 + ["head"] * 5


CONSTANTS = [("local", 3), ("local", 5), ("toeplitz", None), ("dense", None)]


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("over", [("heads", "windows"), ("layers", "windows"), ("windows",)])
def test_the_floor_is_the_least_that_a_state_costs(models: Any, over: Any, side: int) -> None:
    model = models["digits"].model.module
    sites = find_sites(model)
    near = windowed_macs(Shape((8, 8), 1), sites.attention[0].head_dim, side)
    macs = MacsOfStates(model, sites, [CONSTANTS] * 6, dict.fromkeys(range(6), near))
    rest = (frozenset[int](),) * 5
    costs: list[int] = []
    for kinds in itertools.product("cfw", repeat=4):
        frozen, windowed = (frozenset(head for head, kind in enumerate(kinds) if kind == which) for which in "fw")
        if "heads" in over or len(frozen) in (0, 4 * ("layers" in over)):
            costs.append(macs.total(State((frozen, *rest), (None,) * 6, (windowed, *rest))))
    assert macs.floor(over) == pytest.approx(1 - 6 * (macs.original - min(costs)) / macs.original)


@pytest.mark.usefixtures("unchecked")
def test_what_is_measured_is_what_the_compressed_model_does(models: Any, pictures: Path, tmp_path: Path) -> None:
    known, out = models["fine"], tmp_path / "plan.yaml"
    plan = search(known, pictures, NEAR[0], WindowHeads(window=3, outside="mean"), target_macs=0.95, out=out, **BOTH)
    assert Plan.load(out) == plan
    record = tmp_path / "plan.search.json"
    checked(known, drawn(known.model, pictures, BOTH["images"]), plan, record)
    windowed = [layer.heads[head] for layer in plan.layers for head in layer.heads_of("windowed")]
    assert windowed
    assert all(head.window == 3 and (head.why or "").startswith("step ") and "% of the mass outside" in head.why for head in windowed)
    assert any(layer.constant for layer in plan.layers)
    assert plan.constants is not None
    assert plan.windowed == WindowHeads(None, 3, "mean")
    computed = [head.why or "" for layer in plan.layers for head in layer.heads if head.source == "computed"]
    assert all(why.startswith("alone ") and "; windowed alone " in why for why in computed)
    assert sum(each.kind == "window" for each in load_search(record).alone) == 6


@pytest.mark.usefixtures("unchecked")
def test_a_record_without_windows_goes_on_with_them_but_not_with_others(models: Any, pictures: Path, tmp_path: Path) -> None:
    known, record = models["fine"], tmp_path / "s.json"
    options = BOTH | {"record": record, "target_macs": 0.98}
    first = search(known, pictures, NEAR[0], **options | {"over": ("heads",)})
    data = json.loads(record.read_text())
    assert data["subject"].pop("windowed") is None
    record.write_text(json.dumps(data))  # as searches wrote it before there were windows
    before = load_search(record)
    search(known, pictures, *NEAR, resume=True, **options)
    after = load_search(record)
    assert after.measurements[: len(before.measurements)] == before.measurements
    new = after.measurements[len(before.measurements) :]
    assert sum(each.kind == "window" and each.step == 0 for each in new) == 6
    assert not any(each.kind == "head" and each.step == 0 for each in new)
    again = search(known, pictures, NEAR[0], resume=True, **options | {"over": ("heads",)})
    kept = load_search(record)
    assert (again.constants, kept.measurements, kept.subject.windowed) == (first.constants, after.measurements, after.subject.windowed)
    assert [layer.constant for layer in again.layers] == [layer.constant for layer in first.layers]
    with pytest.raises(OtherSearch, match="another windowed"):
        search(known, pictures, NEAR[0], WindowHeads(window=1), resume=True, **options)


saves = st.lists(st.floats(-0.01, 0.02), min_size=3, max_size=3).map(lambda each: (0.0, *each))


@given(saves, saves, st.booleans(), st.booleans())
def test_the_floor_of_latency_is_what_steps_that_save_something_reach(heads: Any, near: Any, single: bool, whole: bool) -> None:
    model = AdditiveLatency((heads,), (), (near,))

    def saved(state: str) -> float:
        return heads[state.count("f")] + near[state.count("w")]

    def reached(state: str) -> float:
        """The most that is saved on ways from here; a state says of every head whether it is computed, frozen or windowed."""
        nexts = [state[:n] + "f" + state[n + 1 :] for n, kind in enumerate(state) if kind != "f" and single]
        nexts += [state[:n] + "w" + state[n + 1 :] for n, kind in enumerate(state) if kind == "c"] + ["fff"] * whole
        return max([saved(state), *(reached(after) for after in nexts if saved(after) > saved(state))])

    assert model.floor(single=single, whole=whole, factorize=False, window=True) == pytest.approx(1 - reached("ccc"))
    assert model.share([2], [], [1]) == pytest.approx(1 - heads[2] - near[1])


class MadeUp:
    """A timer whose models take 10 ms less 0.1 per frozen and 0.06 per windowed head."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> MadeUp:
        return self

    def __exit__(self, *_: object) -> None: ...

    def time(self, models: Mapping[str, Callable[[], Any]], text: str, seconds: float) -> Timed:
        layers = {name: make().plan.layers for name, make in models.items()}
        saved = {name: sum(0.1 * len(each.constant) + 0.06 * len(each.heads_of("windowed")) for each in layers[name]) for name in layers}
        return Timed([10.0] * 12, {name: [10.0 - less] * 12 for name, less in saved.items()}, None)


@pytest.mark.usefixtures("unchecked")
def test_windows_are_searched_by_their_time(models: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "RuntimeTimer", MadeUp)
    out = tmp_path / "plan.yaml"
    plan = search(models["fine"], pictures, *NEAR, target_latency=0.96, runtime="torch-fp32", out=out, **BOTH)
    record = load_search(tmp_path / "plan.search.json")
    changes = [(each.kind, each.amount, round(each.saved, 6)) for each in record.latencies[0].changes]
    assert changes == [("heads", n, 0.01 * n) for n in (1, 2, 3)] + [("windows", n, round(0.006 * n, 6)) for n in (1, 2, 3)]
    counts = [sum(len(layer.heads_of(name)) for layer in plan.layers) for name in ("frozen", "windowed")]
    assert counts[1]
    assert plan.latency is not None
    assert plan.latency.ratio == pytest.approx(1 - 0.01 * counts[0] - 0.006 * counts[1])
    assert plan.latency.ratio <= 0.96


def test_sites_whose_heads_may_be_windowed_are_groups_of_their_own() -> None:
    moves = small()
    found = [group for group in groups_of(moves) if group.kind == "windows"]
    assert [(group.places, group.amounts) for group in found] == [((0, 2), (1, 2))]
    assert state_of(found[0], 1, moves).windows == ({0}, frozenset(), {1})


@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense_is_refused(models: Any, pictures: Path) -> None:
    options = BOTH | {"target_macs": 0.95}
    with pytest.raises(VitfrostError, match="no head of swin_tiny_patch4_window7_224 can be windowed"):
        search(models["swin"], pictures, **options)
    with pytest.raises(VitfrostError, match="windows of 15 x 15 patches save nothing on a grid of 8 x 8; give a smaller WindowHeads"):
        search(models["digits"], pictures, **options)
    with pytest.raises(VitfrostError, match=r"leave out WindowHeads\.ratio"):
        search(models["digits"], pictures, WindowHeads(0.5, 3), **options)
    with pytest.raises(VitfrostError, match=r"add windows to Search\.over"):
        search(models["digits"], pictures, NEAR[1], **options | {"over": ("heads",)})
    with pytest.raises(VitfrostError, match="all heads, windows changed as far as they go leave"):
        search(models["digits"], pictures, *NEAR, **options | {"target_macs": 0.3})
    with pytest.raises(VitfrostError, match=r"WindowHeads\.ratio is missing"):
        vitfrost.plan(models["digits"].statistics, NEAR[1])
    with pytest.raises(VitfrostError, match="whole maps with a mask, which saves no time"):
        refuse_slow_windows(NEAR[1], Target("onnxruntime", "int8", 1))
    with pytest.raises(VitfrostError, match="native has no windowed heads that keep a mean"):
        refuse_slow_windows(WindowHeads(outside="mean"), Target("native", "int8", 1))
    refuse_slow_windows(NEAR[1], Target("native", "int8", 1))


@pytest.mark.usefixtures("unchecked")
def test_the_command(models: Any, pictures: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "plan.yaml"
    models["digits"].statistics.save(statistics)
    words = ("--statistics", statistics, "--model", "vitfrost_digits", "--images", pictures, "--search-images", "4", "--out", out)
    for more, said in (
        (("--windowed-side", "3"), "--windowed-side goes with --search-over windows; give that too, or leave it out"),
        (
            ("--search-over", "windows"),
            "save nothing on a grid of 8 x 8; give a smaller --windowed-side, or leave windows out of --search-over",
        ),
    ):
        ended = call("search", *words, "--target-macs", "0.98", *more)
        assert (ended.status, len(ended.err.strip().splitlines())) == (2, 1)
        assert said in ended.err
    ended = call("search", *words, "--target-macs", "0.98", "--search-over", "windows", "--windowed-side", "3")
    assert ended.status == 0, ended.err
    assert " of 24 heads windowed" in ended.out
    assert (Plan.load(out).constants, Plan.load(out).windowed) == (None, NEAR[1])
