"""Searches for a latency: real exports under a clock that counts multiply-accumulates, and made-up times for what real ones seldom do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitfrost.artifact import Artifact
from vitfrost.budget import latency, runtimes
from vitfrost.budget import search as verb
from vitfrost.budget.history import load_search
from vitfrost.budget.timer import RuntimeTimer, Timed
from vitfrost.configs import FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.description import describe
from vitfrost.plans.schema import Plan
from vitfrost.runtime import Runtime

from . import searching

QUICK: dict[str, Any] = {"images": 10, "batch_size": 10, "progress": False}
EXTRA = ("onnx", "onnxscript", "onnxruntime", "openvino")
EXPORTS = pytest.mark.skipif(any(find_spec(name) is None for name in EXTRA), reason="the extra export is not installed")


class MadeUp:
    """A timer whose models take 10 ms less 0.1 per frozen head and `rank_saves` per factorized block; `mixed` more where layers are not all
    changed alike, and `both` more where heads and blocks are changed. In mixed models, heads beyond `many` save five times as much."""

    mixed, both, rank_saves, many, calls, dies_at = 0.0, 0.0, 0.05, 99, 0, 0

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> MadeUp:
        return self

    def __exit__(self, *_: object) -> None: ...

    def time(self, models: Mapping[str, Callable[[], Artifact]], text: str, seconds: float) -> Timed:
        type(self).calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return Timed([10.0] * 12, {name: [self.ms(make())] * 12 for name, make in models.items()}, None)

    def ms(self, artifact: Artifact) -> float:
        heads = [len(layer.constant) for layer in artifact.plan.layers]
        blocks = sum(block.rank is not None for block in artifact.plan.feed_forward)
        mixed = self.mixed if len(set(heads)) > 1 or 0 < blocks < len(artifact.plan.feed_forward) else 0.0
        both = self.both if any(heads) and blocks else 0.0
        more = 0.4 * max(sum(heads) - self.many, 0) if len(set(heads)) > 1 else 0.0
        return 10.0 - 0.1 * sum(heads) - self.rank_saves * blocks + mixed + both - more


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> type[MadeUp]:
    """Searches are timed by this class, whose attributes a test may set."""
    kind = type("Kind", (MadeUp,), {})
    monkeypatch.setattr(verb, "RuntimeTimer", kind)
    return kind


def search(models: Any, pictures: Path, out: Path, target: float, **options: Any) -> Any:
    options = {"runtime": "torch-fp32", "out": out} | QUICK | options
    return searching.search(models["digits"], pictures, target_latency=target, **options)


def test_a_prediction_that_holds_ends_the_search(models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp]) -> None:
    out = tmp_path / "plan.yaml"
    made_up.rank_saves = -0.2
    plan = search(models, pictures, out, 0.9)
    assert not plan.feed_forward  # factors cost time here, so none are taken
    assert sum(len(layer.constant) for layer in plan.layers) >= 10
    assert plan.latency is not None
    assert Plan.load(out) == plan
    record = load_search(out.with_suffix(".search.json"))
    (known,) = record.latencies
    assert [(change.kind, change.amount) for change in known.changes] == [("heads", n) for n in (1, 2, 3, 4)] + [
        ("rank", n) for n in (48, 43, 32)
    ]
    assert [change.saved for change in known.changes] == pytest.approx([0.01 * n for n in (1, 2, 3, 4)] + [-0.02] * 3)
    assert [change.saved_ms for change in known.changes[:4]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    outcome = record.outcome
    assert outcome is not None
    assert outcome.latency is not None
    assert outcome.latency.corrections == 0
    timed = outcome.latency.measured
    assert timed is not None
    assert timed.ratio == pytest.approx(outcome.latency.predicted)
    assert timed.ratio == pytest.approx(record.steps[-1].latency_share)
    assert timed.ratio <= 0.9 + 1e-9 < record.steps[-2].latency_share  # type: ignore[operator]
    assert (plan.latency.ratio, plan.latency.runtime, plan.latency.threads) == (round(timed.ratio, 4), "torch-fp32", 1)
    assert outcome.macs_share == pytest.approx(record.steps[-1].macs / record.original_macs)
    reasons = [head.why or "" for layer in plan.layers for head in layer.heads]
    assert all("of the latency" in why or ", latency 0." in why for why in reasons)


def test_a_prediction_that_misses_is_corrected_and_resuming_measures_nothing(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp], monkeypatch: pytest.MonkeyPatch, messages: Any
) -> None:
    out, again = tmp_path / "plan.yaml", tmp_path / "again.yaml"
    made_up.mixed = 0.15
    plan = search(models, pictures, out, 0.9, over=("heads",), max_drop=90.0, progress=True)
    record = load_search(out.with_suffix(".search.json"))
    outcome = record.outcome
    assert outcome is not None
    assert outcome.met
    assert outcome.drop <= 90
    assert outcome.latency is not None
    assert outcome.latency.corrections >= 1
    models_timed = record.latencies[0].models
    assert [model.ratio <= 0.9 for model in models_timed] == [False] * outcome.latency.corrections + [True]
    assert all(model.ratio == pytest.approx(model.predicted + 0.015) for model in models_timed)
    assert models_timed[-1].state == record.steps[-1].state
    assert "the search goes on to" in messages()
    calls = made_up.calls
    assert calls == 1 + len(models_timed)

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(verb.EffectMeter, "measure", never)
    options = {"record": out.with_suffix(".search.json"), "over": ("heads",), "max_drop": 90.0, "resume": True}
    assert search(models, pictures, again, 0.9, **options) == plan
    assert again.read_bytes() == out.read_bytes()
    assert made_up.calls == calls
    assert load_search(out.with_suffix(".search.json")) == record


def test_what_is_saved_beyond_the_target_is_given_back(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp], messages: Any
) -> None:
    out = tmp_path / "plan.yaml"
    made_up.mixed, made_up.many = 0.25, 8
    plan = search(models, pictures, out, 0.92, over=("heads",), progress=True)
    record = load_search(out.with_suffix(".search.json"))
    assert record.outcome is not None
    assert record.outcome.latency is not None
    outcome, timed = record.outcome.latency, {model.state: model.ratio for model in record.latencies[0].models}
    assert outcome.corrections == 1  # 8 heads are predicted to be enough and take 0.945, 12 take 0.745
    assert outcome.given_back == 3
    assert len(record.steps) == sum(len(layer.constant) for layer in plan.layers) == 9
    assert outcome.measured is not None
    assert outcome.measured.state == record.steps[-1].state
    assert outcome.measured.ratio == pytest.approx(0.895)
    assert min(timed.values()) == pytest.approx(0.745)
    assert "3 of 12 steps are given back, 0.895" in messages()
    assert record.outcome.drop == pytest.approx(100 - record.steps[-1].agreement)
    calls = made_up.calls
    assert search(models, pictures, out, 0.92, over=("heads",), resume=True) == plan
    assert made_up.calls == calls


@pytest.mark.parametrize("corrections", [0, 3])
def test_a_target_that_is_missed_says_how_near(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp], monkeypatch: pytest.MonkeyPatch, corrections: int
) -> None:
    out = tmp_path / "plan.yaml"
    made_up.both = 0.6
    monkeypatch.setattr(latency, "CORRECTIONS", corrections)
    after = " after 1 correction of what was predicted" if corrections else ""
    timed = r"latency 0\.\d+ \(95 % .* predicted\) of the original on torch-fp32, 1 thread, MACs "
    with pytest.raises(VitfrostError, match=rf"came to {timed}.*{after}, and the target is 0\.77; give a higher Search\.target_latency"):
        search(models, pictures, out, 0.77, over=("layers", "ranks"))
    assert not out.exists()
    record = load_search(out.with_suffix(".search.json"))
    outcome = record.outcome
    assert outcome is not None
    assert not outcome.met
    assert outcome.latency is not None
    assert outcome.latency.corrections == min(corrections, 1)  # all that can be changed is changed then
    assert len(record.latencies[0].models) == outcome.latency.corrections + 1
    assert outcome.latency.measured is not None
    assert outcome.latency.measured.ratio == pytest.approx(outcome.latency.predicted + 0.06)


def test_what_all_changes_cannot_save_is_refused_before_the_search(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp]
) -> None:
    out = tmp_path / "plan.yaml"
    with pytest.raises(VitfrostError, match=r"target of 0.5 of the latency on torch-fp32 .* predicted to leave 0\.730; give a higher"):
        search(models, pictures, out, 0.5)
    with pytest.raises(VitfrostError, match=r"leave 0\.760; give a higher Search\.target_latency or search over more"):
        search(models, pictures, out, 0.5, over=("layers",), resume=True)
    record = load_search(out.with_suffix(".search.json"))
    assert not record.measurements
    assert made_up.calls == 2  # heads and ranks; all heads of a layer are among the former


def test_a_killed_table_goes_on_and_another_setup_is_timed_anew(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp], monkeypatch: pytest.MonkeyPatch, messages: Any
) -> None:
    out = tmp_path / "plan.yaml"
    options: dict[str, Any] = {"over": ("layers", "ranks")}
    made_up.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        search(models, pictures, out, 0.9, **options)
    assert len(load_search(out.with_suffix(".search.json")).latencies[0].changes) == 1
    search(models, pictures, out, 0.9, resume=True, **options)
    assert made_up.calls == 4  # heads, ranks (killed), ranks, the plan's model
    record = load_search(out.with_suffix(".search.json"))
    messages()
    monkeypatch.setattr(runtimes, "processor_name", lambda: "another processor")
    search(models, pictures, out, 0.9, resume=True, progress=True, **options)
    assert "latency: what is known was timed on torch-fp32, 1 thread (torch" in messages()
    after = load_search(out.with_suffix(".search.json"))
    assert made_up.calls == 7
    assert [known.setup.cpu for known in after.latencies] == [record.latencies[0].setup.cpu, "another processor"]
    assert after.latencies[0] == record.latencies[0]
    assert after.measurements == record.measurements


def test_a_search_that_goes_on_removes_what_a_killed_one_left(
    models: Any, pictures: Path, tmp_path: Path, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "plan.yaml"
    scratch = tmp_path / ".plan.search.json.scratch"
    models["digits"].statistics.save(statistics)
    words = ("--statistics", statistics, "--model", "vitfrost_digits", "--images", pictures, "--search-images", "10", "--out", out)
    process = started("search", *words, "--target-latency", "0.9", "--runtime", "torch-fp32", "--search-over", "layers")
    while process.poll() is None and not (scratch.is_dir() and any(scratch.iterdir())):
        time.sleep(0.01)
    process.kill()
    _, said = process.communicate()
    assert any(scratch.iterdir()), said
    found: list[list[Path]] = []

    class InScratch(RuntimeTimer):
        ms = MadeUp().ms

        def time(self, models: Mapping[str, Callable[[], Any]], text: str, seconds: float) -> Timed:
            found.append(list(scratch.iterdir()))
            return Timed([10.0] * 12, {name: [self.ms(make())] * 12 for name, make in models.items()}, None)

    monkeypatch.setattr(verb, "RuntimeTimer", InScratch)
    search(models, pictures, out, 0.9, over=("layers",), resume=True)
    assert found == [[], []]  # the table and the plan's model
    assert {path.name for path in tmp_path.iterdir()} == {statistics.name, "plan.yaml", "plan.search.json"}


class MacsClock:
    """Ten million multiply-accumulates take a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted(Runtime):
    """A session that runs, and then tells the clock how long its model takes."""

    def __init__(self, session: Any, macs: int, clock: MacsClock):
        self.session, self.macs, self.clock, self.precision = session, macs, clock, session.precision

    def run(self, pixels: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.session.run(pixels)
        assert np.isfinite(found).all()
        self.clock.now += self.macs / 1e7
        return found


class ByMacs(RuntimeTimer):
    """Real exports and sessions; a model's time is its multiply-accumulates as its export tells them."""

    exports = 0

    def __init__(self, *given: Any):
        super().__init__(*given, clock=MacsClock())

    def _open(self, name: str, loaded: Any, folder: Path) -> Any:
        type(self).exports += name != "original" or self._kept is None
        session = super()._open(name, loaded, folder)
        assert session.about["macs"] == describe(loaded).macs
        return Counted(session, session.about["macs"], self.clock)  # type: ignore[arg-type]


@EXPORTS
def test_exported_models_are_timed_end_to_end(models: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "RuntimeTimer", ByMacs)
    known, out = models["distilled"], tmp_path / "plan.yaml"
    options = {"target_latency": 0.97, "runtime": "onnxruntime-fp32", "over": ("layers",), "out": out} | QUICK
    plan = searching.search(known, pictures, FreezeHeads(kind="dense"), **options)
    assert [len(layer.constant) for layer in plan.layers] in ([3, 0], [0, 3])
    record = load_search(tmp_path / "plan.search.json")
    assert record.outcome is not None
    assert record.outcome.latency is not None
    timed = record.outcome.latency.measured
    assert timed is not None
    # layers are alike, so multiply-accumulates add up, and what is measured is what was predicted
    assert timed.ratio == pytest.approx(record.steps[-1].macs_share)
    assert timed.predicted == pytest.approx(timed.ratio)
    assert timed.interval == pytest.approx((timed.ratio, timed.ratio))
    assert timed.original_ms == pytest.approx(record.original_macs / 1e4)
    assert ByMacs.exports == 4  # the original once; the first layer changed, and the last, which lean graphs cut short; the plan's model
    before = out.read_bytes()
    out.unlink()
    searching.search(known, pictures, FreezeHeads(kind="dense"), resume=True, **options)
    assert (ByMacs.exports, out.read_bytes()) == (4, before)


def test_the_command_prints_what_was_measured(
    models: Any, pictures: Path, tmp_path: Path, made_up: type[MadeUp], call: Callable[..., Any]
) -> None:
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "plan.yaml"
    models["digits"].statistics.save(statistics)
    words = ("--statistics", statistics, "--model", "vitfrost_digits", "--images", pictures, "--search-images", "10", "--out", out)
    ended = call("search", *words, "--target-latency", "0.93", "--runtime", "torch-fp32", "--search-over", "layers")
    assert ended.status == 0, ended.err
    assert "0.920 of the original's latency on torch-fp32 (95 % interval 0.920 to 0.920)" in ended.out
    assert "search: ended at latency 0.920" in ended.err
    assert "# - latency: what the search measured" in out.read_text()


def test_a_real_clock_times_every_model_in_every_round(models: Any, pictures: Path) -> None:
    known = models["digits"]
    before = torch.get_num_threads()
    runtime = runtimes.find_target("torch-fp32", 1)
    with RuntimeTimer(known.model, runtime, pictures, 0, False, clock=lambda: 100 * time.perf_counter()) as timer:  # fewer repetitions
        found = timer.time({"one": lambda: known.model, "two": lambda: known.model}, "", 0.0)
    assert torch.get_num_threads() == before
    assert [len(found.original), *map(len, found.models.values())] == [12, 12, 12]
    assert list(found.models) == ["one", "two"]
    assert min(found.original) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target-latency", "0.9"), "--target-latency needs a --runtime; give one, such as openvino-int8"),
        (("--target-latency", "1.2", "--runtime", "torch-fp32"), "--target-latency is 1.2; it should be less than 1"),
        (("--target-latency", "0.9", "--runtime", "tflite-int8"), "--runtime: 'tflite-int8' is none of onnxruntime-fp32"),
        (("--runtime", "torch-fp32"), "--runtime goes with --target-latency; give that too"),
        (("--max-drop", "1", "--threads", "2"), "--threads goes with --target-latency; give that too"),
        (
            ("--target-latency", "0.9", "--runtime", "torch-fp32", "--threads", "0"),
            "--threads is 0; it should be greater than or equal to 1",
        ),
        (("--target-latency", "0.9", "--runtime", "torch-fp32", "--target-macs", "0.9"), "are two searches; give one of them"),
    ],
)
def test_refusals_are_one_line(
    models: Any, pictures: Path, tmp_path: Path, call: Callable[..., Any], words: tuple[str, ...], said: str
) -> None:
    statistics = tmp_path / "statistics.safetensors"
    models["digits"].statistics.save(statistics)
    given = ("--statistics", statistics, "--model", "vitfrost_digits", "--images", pictures, "--out", tmp_path / "plan.yaml")
    ended = call("search", *given, *words)
    assert ended.status == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [statistics]


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "nncf" else find_spec("json"))
    with pytest.raises(VitfrostError, match=r"openvino-int8 needs nncf, which is not installed; pip install 'vitfrost\[export\]'"):
        runtimes.find_target("openvino-int8", 1)
    assert runtimes.find_target("openvino-fp32", 1).packages == ("openvino",)


@EXPORTS
def test_a_precision_that_the_cpu_does_not_have_is_refused(shallow: Any, pictures: Path) -> None:
    import openvino

    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with RuntimeTimer(shallow.model, runtimes.find_target("openvino-bf16", 1), pictures, 0, False) as timer:
        if has_bf16:
            assert len(timer.time({}, "", 0.0).original) == 12
        else:
            with pytest.raises(VitfrostError, match=r"this CPU computes openvino-bf16 in fp32; give another Search\.runtime"):
                timer.time({}, "", 0.0)
