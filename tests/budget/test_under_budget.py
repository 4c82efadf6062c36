"""The whole search: measurements equal whole runs, plans hold what was measured, kills lose nothing, refusals are one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.budget import search as verb
from vitfrost.budget.effects import MEMORY
from vitfrost.budget.history import load_search
from vitfrost.configs import Compact, FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.intervals import divergences
from vitfrost.images.preprocess import Preprocess
from vitfrost.model import Model
from vitfrost.plans.schema import Plan

from .searching import QUICK, search

SVD = Compact(init="weights")  # factors that do not depend on the draw of `compress`


def outputs(model: Model, pixels: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.module(pixels).float().numpy()


def drawn(model: Model, pictures: Path, count: int) -> torch.Tensor:
    _, batch = verb._draw(pictures, None, model, Preprocess(model.preprocessing), count, 0)
    return batch.pixels


def checked(known: Any, pixels: torch.Tensor, plan: Plan, record: Path) -> None:
    """The compressed model does to the images what the search says that it measured last."""
    artifact = vitfrost.compress(known.model, plan, statistics=known.statistics)
    before, after = outputs(known.model, pixels), outputs(artifact, pixels)
    found = load_search(record)
    assert found.outcome is not None
    assert found.outcome.met
    last = found.steps[-1]
    np.testing.assert_allclose(divergences(before, after).mean(), last.kl, rtol=1e-3, atol=1e-7)
    assert abs(100 * (before.argmax(1) == after.argmax(1)).mean() - last.agreement) < 1e-6
    assert vitfrost.inspect(known.model, plan=plan)["planned"]["macs_total"] == last.macs


@pytest.mark.parametrize("which", ["cls", "distilled", "average", "swin", "pvt"])
def test_what_is_measured_is_what_the_compressed_model_does(models: Any, pictures: Path, which: str, tmp_path: Path) -> None:
    known = models[which]
    target = {"swin": 0.97, "pvt": 0.97}.get(which, 0.93)
    options = QUICK | ({} if which in ("cls", "distilled", "average") else {"over": ("layers",)})
    out = tmp_path / "plan.yaml"
    options |= {"images": 4 if which == "pvt" else 10}
    methods = () if "over" in options else (SVD,)
    plan = search(known, pictures, *methods, target_macs=target, out=out, **options)
    assert Plan.load(out) == plan
    checked(known, drawn(known.model, pictures, options["images"]), plan, tmp_path / "plan.search.json")
    if which in ("swin", "pvt"):
        assert {len(layer.constant) for layer in plan.layers if layer.constant} <= {len(layer.heads) for layer in plan.layers}
        assert plan.constants is not None
        assert plan.constants.unit == "layer"
        assert plan.compact is None


def test_every_shared_prefix_gives_the_whole_models_outputs(models: Any, pictures: Path) -> None:
    """Every measurement of a search again, by running the changed copy as a whole, with all and with few inputs kept."""
    known = models["cls"]
    seen: list[Any] = []
    for memory in (MEMORY, 1):

        class Watched(verb.EffectMeter):
            def __init__(self, *given: Any, memory: int = memory, **options: Any):
                super().__init__(*given, memory=memory, **options)

            def measure(self, state: Any, near: Any) -> Any:
                found = super().measure(state, near)
                again = self._effect(self._whole(state), 0.0)
                seen.append((found.kl, again.kl, found.agreement, again.agreement))
                return found

        original, verb.EffectMeter = verb.EffectMeter, Watched  # type: ignore[misc]
        try:
            search(known, pictures, target_macs=0.96, over=("heads", "ranks"), **QUICK)
        finally:
            verb.EffectMeter = original  # type: ignore[misc]
    assert len(seen) > 36
    for kl, again, agreement, also in seen:
        assert kl == pytest.approx(again, rel=1e-4, abs=1e-9)
        assert agreement == also
    assert len({kl for kl, *_ in seen}) > 12


def test_the_plan_says_why(models: Any, pictures: Path, tmp_path: Path) -> None:
    known = models["digits"]
    out = tmp_path / "plan.yaml"
    plan = search(known, pictures, target_macs=0.9, out=out, **QUICK)
    heads = [head for layer in plan.layers for head in layer.heads]
    assert all(head.why for head in heads)
    assert all(block.why for block in plan.feed_forward)
    found = load_search(tmp_path / "plan.search.json")
    steps = [line.partition(": ")[0] for line in (*(h.why or "" for h in heads), *(b.why or "" for b in plan.feed_forward))]
    assert {step for step in steps if step.startswith("step")} <= {f"step {number + 1}" for number in range(len(found.steps))}
    # first round: every head, every layer, three ranks of every block
    assert len(found.alone) == 24 + 6 + 18
    assert found.steps[-1].macs_share <= 0.9 < found.steps[-2].macs_share
    assert found.steps[-1].kl == pytest.approx(sum(step.increase for step in found.steps))


class _Killed(BaseException):
    pass


OF_HEADS: dict[str, Any] = {"target_macs": 0.92, "over": ("heads",), **QUICK}


@pytest.fixture(scope="module")
def whole(models: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a search that was left alone, with its search file beside it."""
    known, out = models["digits"], tmp_path_factory.mktemp("whole") / "whole.yaml"
    search(known, pictures, out=out, **OF_HEADS)
    return out


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("after", [3, 30])
def test_a_killed_search_goes_on_to_the_same_plan(
    models: Any, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    known, options = models["digits"], OF_HEADS
    cut = tmp_path / "cut.yaml"
    counted = [0]
    measure = verb.EffectMeter.measure

    def dies(self: Any, state: Any, near: Any) -> Any:
        counted[0] += 1
        if counted[0] == after:
            raise _Killed
        return measure(self, state, near)

    monkeypatch.setattr(verb.EffectMeter, "measure", dies)
    with pytest.raises(_Killed):
        search(known, pictures, out=cut, **options)
    assert not cut.exists()
    with pytest.raises(VitfrostError, match="holds a search already; add --resume"):
        search(known, pictures, out=cut, **options)
    search(known, pictures, out=cut, resume=True, **options)
    assert cut.read_bytes() == whole.read_bytes()
    one, other = (json.loads(out.with_suffix(".search.json").read_text()) for out in (whole, cut))
    for record in (one, other):
        for each in record["measurements"]:
            del each["seconds"]
    assert one == other
    assert counted[0] == len(one["measurements"])  # the original is measured apart, the one that was cut twice


@pytest.mark.usefixtures("unchecked")
def test_a_search_that_goes_on_with_another_budget_measures_nothing_twice(models: Any, pictures: Path, tmp_path: Path) -> None:
    known, record = models["digits"], tmp_path / "s.json"
    options: dict[str, Any] = {"record": record, **QUICK}
    near = search(known, pictures, target_macs=0.95, **options)
    before = load_search(record)
    far = search(known, pictures, target_macs=0.85, resume=True, **options)
    after = load_search(record)
    assert after.measurements[: len(before.measurements)] == before.measurements
    assert after.steps[: len(before.steps)] == before.steps
    assert len({each.state for each in after.measurements}) == len(after.measurements)
    assert sum(len(layer.constant) for layer in far.layers) >= sum(len(layer.constant) for layer in near.layers)
    with pytest.raises(VitfrostError, match="is of a search with another images"):
        search(known, pictures, target_macs=0.85, resume=True, **options | {"seed": 1})


@pytest.fixture
def unlabeled(pictures: Path, tmp_path: Path) -> Path:
    """The pictures without their labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for picture in pictures.glob("*.png"):
        (folder / picture.name).hardlink_to(picture)
    return folder


@pytest.mark.usefixtures("unchecked")
def test_a_drop_is_of_top1_with_labels_and_of_agreement_without(models: Any, pictures: Path, unlabeled: Path, tmp_path: Path) -> None:
    known = models["digits"]
    drops = {}
    for name, folder in (("labeled", pictures), ("unlabeled", unlabeled)):
        record = tmp_path / f"{name}.json"
        options = QUICK | {"images": 20, "batch_size": 20, "over": ("layers", "ranks")}
        search(known, folder, max_drop=10.0, record=record, **options)
        found = load_search(record)
        assert found.outcome is not None
        original = found.measurements[0]
        last = found.steps[-1]
        assert found.subject.images.labeled == (name == "labeled")
        if name == "labeled":
            assert original.top1 is not None
            assert last.top1 is not None
            assert found.outcome.drop == pytest.approx(original.top1 - last.top1)
        else:
            assert last.top1 is None
            assert found.outcome.drop == pytest.approx(100 - last.agreement)
        assert found.outcome.drop <= 10 + 1e-9
        drops[name] = found
    states = [{each.state: each.kl for each in found.alone} for found in drops.values()]
    assert states[0] == states[1]  # labels change when the search ends, not what it measures


def test_what_cannot_be_met_says_how_near_it_came(models: Any, unlabeled: Path, tmp_path: Path) -> None:
    known, out = models["cls"], tmp_path / "plan.yaml"
    with pytest.raises(VitfrostError, match=r"target of 0.5 .* cannot be met: all heads, layers, ranks .* leave 0\.\d+"):
        search(known, unlabeled, target_macs=0.5, out=out, **QUICK)
    with pytest.raises(VitfrostError, match="search over more"):
        search(known, unlabeled, target_macs=0.5, out=out, over=("ranks",), **QUICK)
    assert not (tmp_path / "plan.search.json").exists()  # known before anything was measured
    options = QUICK | {"images": 20, "batch_size": 20, "over": ("layers", "ranks")}
    with pytest.raises(
        VitfrostError, match=r"came to MACs 0\.\d+ of the original at a drop of \d+\.\d+ points of agreement; the target is 0\.76"
    ):
        search(known, unlabeled, target_macs=0.76, max_drop=0.0, out=out, **options)
    assert not out.exists()
    found = load_search(tmp_path / "plan.search.json")
    assert found.outcome is not None
    assert not found.outcome.met
    assert 0.76 < found.outcome.macs_share <= 1
    assert found.outcome.drop <= 0


def test_the_command(models: Any, pictures: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "plan.yaml"
    models["digits"].statistics.save(statistics)
    model = ("--statistics", statistics, "--model", "vitfrost_digits", "--images", pictures, "--search-images", "8", "--out", out)
    ended = call("search", *model, "--target-macs", "0.93", "--search-over", "heads", "--constants", "dense")
    assert ended.status == 0, ended.err
    assert "heads frozen whole" in ended.out
    assert "search: step 1, " in ended.err
    plan = Plan.load(out)
    assert {head.constant for layer in plan.layers for head in layer.heads} == {"dense", None}
    assert (plan.quantize.weights, plan.quantize.activations) == (32, 32)
    ended = call("compress", "--model", "vitfrost_digits", "--plan", out, "--statistics", statistics, "--out", tmp_path / "artifact")
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target-macs", "1.5"), "--target-macs is 1.5; it should be less than 1"),
        (("--max-drop", "-1"), "--max-drop is -1.0; it should be greater than or equal to 0"),
        (("--target-macs", "0.9", "--freeze", "0.2"), "Unrecognized options: --freeze"),
        (("--target-macs", "0.9", "--search-images", "1"), "--search-images is 1; it should be greater than or equal to 2"),
        (("--target-macs", "0.9", "--compact-init", "random"), "--compact-init is 'random'"),
        (("--target-macs", "0.9", "--weight-bits", "9"), "--weight-bits: '9' is none of 2, 3, 4, 5, 6, 7, 8, 32"),
        (("--target-macs", "0.9", "--window", "3", "--constants", "dense"), "--window has no effect with --constants dense"),
        ((), "a search needs a budget; give --max-drop, --target-macs or --target-latency"),
    ],
)
def test_refusals_are_one_line(
    models: Any, pictures: Path, tmp_path: Path, call: Callable[..., Any], words: tuple[str, ...], said: str
) -> None:
    statistics = tmp_path / "statistics.safetensors"
    models["digits"].statistics.save(statistics)
    model = ("--model", "vitfrost_digits", "--images", pictures)
    ended = call("search", "--statistics", statistics, *model, "--out", tmp_path / "plan.yaml", *words)
    assert ended.status == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [statistics]


def test_other_models_and_statistics_are_refused(models: Any, pictures: Path, call: Callable[..., Any], tmp_path: Path) -> None:
    cls, digits = models["cls"], models["digits"]
    with pytest.raises(VitfrostError, match="statistics belong to another model"):
        search(replace(digits, statistics=cls.statistics), pictures, target_macs=0.9, **QUICK)
    statistics = copy.copy(digits.statistics)
    artifact = vitfrost.compress(digits.model, vitfrost.plan(statistics, FreezeHeads(0.2)),
                                 statistics=statistics)  # fmt: skip
    with pytest.raises(VitfrostError, match="a search starts from a model as timm builds it"):
        search(replace(digits, model=artifact), pictures, target_macs=0.9, **QUICK)
    ended = call("search", "--model", "vitfrost_digits", "--target-macs", "0.9", "--out", tmp_path / "plan.yaml")
    assert ended.status == 2
    assert "--statistics" in ended.err
