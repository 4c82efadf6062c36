"""The verdict at the head of the page: what is measured, the command for what is not, and what to give back first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitfrost.budget.history import SearchImages, SearchRecord, SearchSubject, Taken
from vitfrost.evaluation.results import Difference, load_results
from vitfrost.reporting.build import render
from vitfrost.reporting.parts import RunParts, read_parts
from vitfrost.reporting.verdict import build_verdict
from vitfrost.timing.benchmark import Benchmark, BenchRow, Ratio, save_benchmark


def _row(name: str, unmodified: bool, ratio: float) -> BenchRow:
    return BenchRow(
        name=name, subject=name, original="vitfrost_digits", unmodified=unmodified, kind="executed", runtime="onnxruntime",
        runtime_version="onnxruntime 1", precision="int8", effective_precision="int8", device="cpu", batch=1, threads=1,
        image_size=(32, 32), weights="digits", random_weights=False, state_hash="0", macs=1, file_bytes=1, p50_ms=2 * ratio,
        p90_ms=2 * ratio, images_per_second=1.0, round_ms=[2 * ratio], repetitions=1, cpu="a processor",
        to_peer=Ratio(to="the peer", value=ratio, interval=(ratio, ratio)),
    )  # fmt: skip


@pytest.fixture
def parts(run_folder: Path) -> RunParts:
    rows = [_row("the peer", True, 1.0), _row("ours", False, 0.75)]
    bench = Benchmark(seed=0, rounds=1, environment={}, rates=[], rows=rows)
    save_benchmark(bench, run_folder / "bench" / "bench.json")
    return read_parts(run_folder)


def _lost(parts: RunParts, points: float) -> RunParts:
    assert parts.results is not None
    rows = list(parts.results.rows)
    rows[-1] = rows[-1].model_copy(update={"top1_difference": Difference(value=-points, interval=(-points, -points))})
    return replace(parts, results=parts.results.model_copy(update={"rows": rows}))


def _searched(parts: RunParts) -> RunParts:
    """With a search of two steps, of which the second costs more for what it saves."""

    def step(site: str, increase: float, left: float) -> Taken:
        return Taken(
            move=f"{site} all heads", kind="layer", site=site, state=site, increase=increase, kl=increase, agreement=99.0, top1=None,
            macs=1, macs_share=left, latency_share=left,
        )  # fmt: skip

    assert parts.identity is not None
    images = SearchImages(images=2, images_hash="0", seed=0, skipped=0, labeled=False)
    subject = SearchSubject(model=parts.identity, statistics="0", images=images, constants={}, compact={})
    steps = (step("blocks.1.attn", 0.01, 0.9), step("blocks.4.attn", 0.03, 0.85))
    budget = {"target_latency": 0.85}
    return replace(parts, search=SearchRecord(subject=subject, budget=budget, threads=1, original_macs=2, steps=steps))


def test_what_is_measured_comes_with_its_interval(parts: RunParts) -> None:
    verdict = build_verdict(parts)
    assert verdict is not None
    accuracy, time, size = verdict.answers
    row = parts.compressed
    assert row is not None
    assert row.top1_difference is not None
    assert accuracy.value == f"{row.top1:.2f} %"
    assert f"on {row.images} images" in accuracy.note
    assert accuracy.kind == "simulated"
    assert (time.value, time.kind) == ("0.75", "executed")
    assert time.note.startswith("(0.75 to 0.75) of the time of the peer; 1.50 ms per image on onnxruntime int8, batch 1, 1 thread")
    assert time.question == "Time beside the fastest peer"
    assert size.value.endswith(" MB")
    assert "times smaller" in size.note
    page = render(parts)
    assert (
        page.index("Accuracy kept")
        < page.index("Time beside the fastest peer")
        < page.index("What to do next")
        < page.index('class="lead"')
    )


def test_a_fastest_peer_of_other_precisions_alone_is_told(parts: RunParts) -> None:
    assert parts.bench is not None
    verdict = build_verdict(parts)
    assert verdict is not None
    assert "not timed" not in verdict.answers[1].note
    peer, ours = parts.bench.rows
    bench = parts.bench.model_copy(update={"rows": [peer.model_copy(update={"precision": "fp32"}), ours]})
    verdict = build_verdict(replace(parts, bench=bench))
    assert verdict is not None
    assert verdict.answers[1].note.endswith("1 thread; the fastest of fp32 only: int8 peers were not timed")


def test_what_is_not_measured_comes_with_the_command_that_does(run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    verdict = build_verdict(read_parts(run_folder))
    assert verdict is not None
    accuracy, time, _ = verdict.answers
    assert accuracy.value == time.value == "not measured"
    assert accuracy.command == (
        "vitfrost evaluate RUN/artifact --images EVALUATION_IMAGES --reference vitfrost_digits --json RUN/result.json"
    )
    assert time.command == "vitfrost bench timm:vitfrost_digits RUN/artifact --images CALIBRATION_IMAGES --out RUN/bench"


def test_the_row_of_evaluate_is_read(run_folder: Path) -> None:
    rows = load_results(run_folder / "results.json").rows
    (run_folder / "results.json").unlink()
    (run_folder / "result.json").write_text(rows[-1].model_dump_json())
    assert read_parts(run_folder).compressed == rows[-1]


def test_where_accuracy_is_lost_the_first_things_to_give_back_are_bits_and_the_costliest_step(parts: RunParts) -> None:
    verdict = build_verdict(_searched(_lost(parts, 5.0)))
    assert verdict is not None
    bits, step = (what for what, _ in verdict.next[:2])
    assert bits.startswith("Give bits back first: activations have 4")
    assert "blocks.4.attn all heads (KL +0.03 nats; the search was then at 0.85 of the time)" in step


def test_where_it_is_kept_the_next_step_is_a_tighter_budget(parts: RunParts) -> None:
    verdict = build_verdict(_searched(_lost(parts, 0.1)))
    assert verdict is not None
    assert ("Accuracy is nearly kept, so a tighter budget may pay.", "vitfrost search ... --target-latency 0.80 --resume") in verdict.next
    assert not any("Give" in what for what, _ in verdict.next)
