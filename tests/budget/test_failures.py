"""Candidates that fail: a search notes them with the reason, goes on without them, and does not try them again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from vitfrost.budget import search as verb
from vitfrost.budget.history import load_search
from vitfrost.budget.timer import RuntimeTimer
from vitfrost.errors import VitfrostError

from .searching import QUICK, search

OPTIONS: dict[str, Any] = QUICK | {"batch_size": 10, "over": ("layers", "ranks")}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """States in which the first layer is frozen, or the second block factorized, cannot be measured: which were tried."""
    tried: list[str] = []
    measure = verb.EffectMeter.measure

    def fails(self: Any, state: Any, near: Any) -> Any:
        if state.heads[0] or state.ranks[1] is not None:
            tried.append(state.key)
            raise (torch.linalg.LinAlgError("did not converge") if state.heads[0] else VitfrostError("the outputs are not finite"))
        return measure(self, state, near)

    monkeypatch.setattr(verb.EffectMeter, "measure", fails)
    return tried


def test_a_change_that_cannot_be_measured_is_left_out(models: Any, pictures: Path, tmp_path: Path, failing: list[str]) -> None:
    known, out = models["digits"], tmp_path / "plan.yaml"
    plan = search(known, pictures, target_macs=0.9, out=out, **OPTIONS)
    assert not plan.layers[0].constant
    assert any(layer.constant for layer in plan.layers)
    record = load_search(tmp_path / "plan.search.json")
    assert [each.state for each in record.left_out] == failing
    assert record.left_out[0].why == "_LinAlgError did not converge"
    assert any(each.why == "the outputs are not finite" for each in record.left_out)
    assert record.outcome is not None
    assert record.outcome.met
    before, tries = out.read_bytes(), len(failing)
    search(known, pictures, target_macs=0.9, out=out, resume=True, **OPTIONS)
    assert (out.read_bytes(), len(failing)) == (before, tries)


def test_where_everything_fails_the_first_reason_is_said(
    models: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, state: Any, near: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(verb.EffectMeter, "measure", fails)
    with pytest.raises(VitfrostError, match=r"6 changes failed and were left out, the first, .*: RuntimeError out of memory"):
        search(models["digits"], pictures, target_macs=0.9, out=tmp_path / "plan.yaml", **OPTIONS | {"over": ("layers",)})


def test_a_layer_that_cannot_be_made_leaves_the_model_as_it_is(
    models: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = verb.Replacements._projection_with

    def fails(self: Any, place: int, rank: int | None) -> Any:
        if place == 0 and rank is not None:
            raise RuntimeError("no factors")
        return made(self, place, rank)

    monkeypatch.setattr(verb.Replacements, "_projection_with", fails)
    out = tmp_path / "plan.yaml"
    plan = search(models["digits"], pictures, target_macs=0.9, out=out, **OPTIONS)
    assert plan.feed_forward == () or plan.feed_forward[0].rank is None
    known = {each.state: each for each in load_search(tmp_path / "plan.search.json").measurements}
    monkeypatch.undo()
    whole = tmp_path / "whole.yaml"
    search(models["digits"], pictures, target_macs=0.9, out=whole, **OPTIONS)
    for each in load_search(tmp_path / "whole.search.json").measurements:
        if each.state in known:  # a change of two places that failed at the second has left nothing at the first
            assert known[each.state].kl == each.kl


class Failing(RuntimeTimer):
    """Ranks of 48 cannot be exported, nor can the first model of a plan."""

    opened: ClassVar[list[str]] = []

    def _open(self, name: str, loaded: Any, folder: Path) -> Any:
        self.opened.append(name)
        if name.startswith("rank 48") or (name == "the plan's model" and self.opened.count(name) == 1):
            raise ValueError(f"no graph of {name}")
        return super()._open(name, loaded, folder)


@pytest.mark.usefixtures("unchecked")
def test_a_change_that_cannot_be_timed_is_left_out(models: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "RuntimeTimer", Failing)
    monkeypatch.setattr("vitfrost.budget.latency.TABLE_SECONDS", 0.0)
    monkeypatch.setattr("vitfrost.budget.latency.MODEL_SECONDS", 0.0)
    out = tmp_path / "plan.yaml"
    options = OPTIONS | {"target_latency": 0.995, "runtime": "torch-fp32", "out": out}
    with suppress(VitfrostError):  # whether the target is met depends on the clock; what failed does not
        search(models["digits"], pictures, **options)
    record = load_search(tmp_path / "plan.search.json")
    reasons = [each.why for each in record.left_out]
    assert reasons[0].startswith("ValueError no graph of rank 48")
    assert all(each.setup is not None for each in record.left_out)
    assert not [each for each in record.steps if each.rank == 48]
    assert not any(change.amount == 48 for change in record.latencies[0].changes)
    if "the plan's model" in Failing.opened:
        assert "no graph of the plan's model" in reasons[-1]
