"""Which peer a row is compared with, and what the file and the tables make of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from vitfrost.errors import VitfrostError
from vitfrost.timing.benchmark import Benchmark, LeftOut, Rate, load_benchmark, save_benchmark
from vitfrost.timing.chart import draw_chart
from vitfrost.timing.compare import compared
from vitfrost.timing.table import format_benchmark


def _rows(row) -> list:
    return [
        row([4.0, 5.0, 6.0]),
        row([1.0, 1.0, 1.0], runtime="openvino"),
        row([2.0, 2.0, 2.0], runtime="openvino", precision="int8"),
        row([3.0, 3.0, 3.0], runtime="onnxruntime", precision="int8"),
        row([1.0, 2.0, 1.0], subject="small", runtime="openvino", precision="int8"),
        row([8.0, 10.0, 12.0], subject="small", kind="simulated", precision="W4/A4"),
        row([1.5, 1.5, 1.5], name="plain, onnxruntime int8, lean graph", runtime="onnxruntime", precision="int8", graph="lean"),
        row(
            [0.5, 0.5, 0.5],
            name="small, onnxruntime int8, lean graph",
            subject="small",
            runtime="onnxruntime",
            precision="int8",
            graph="lean",
        ),
    ]


def test_rows_are_compared_with_the_fastest_peer_and_their_own_runtime(row) -> None:
    group = {"image_size": (32, 32), "batch": 1, "threads": 1, "precision": "int8"}
    rates = [Rate(runtime=str(rate), gmacs_per_second=rate, round_ms=[1 / rate] * 3, **group) for rate in (1.0, 10.0)]
    found = {made.name: made for made in compared(_rows(row), rates, 0)}
    assert [made.p50_ms for made in found.values()] == sorted(made.p50_ms for made in found.values())
    assert {made.to_peer.to for made in found.values()} == {"plain, openvino fp32"}  # nor the faster row of our lean graph
    small = found["small, openvino int8"]
    assert (small.to_peer.value, small.to_peer.interval) == (1, (1, 2))
    assert (small.to_unmodified.to, small.to_unmodified.value) == ("plain, openvino int8", 0.5)
    lean = found["small, onnxruntime int8, lean graph"]
    assert (lean.to_peer.value, lean.to_unmodified.value) == (0.5, pytest.approx(1 / 3, abs=1e-6))
    assert lean.to_unmodified.to == "plain, onnxruntime int8, lean graph"
    assert found["plain, openvino int8"].to_peer.value == 2
    assert found["small, torch W4/A4"].to_unmodified.to == "plain, torch fp32"  # a simulation in fp32
    assert found["small, torch W4/A4"].to_unmodified.value == 2
    assert all(made.to_unmodified is None for made in found.values() if made.unmodified)
    assert small.limit_share == pytest.approx(1e6 * 1e3 / 1e10)  # the best rate
    assert found["plain, torch fp32"].limit_share is None


def test_our_own_engine_is_no_peer_and_its_rows_are_compared_with_each_other(row) -> None:
    ours = {"runtime": "native", "graph": "lean"}
    rows = [
        row([4.0, 4.0]), row([2.0, 2.0], runtime="compiled"), row([1.0, 1.0], precision="W8/A8 (avx2)", **ours),
        row([0.5, 0.5], precision="W8/A8 (avx512vnni)", **ours), row([0.4, 0.4], subject="small", precision="W4/A4 (avx512vnni)", **ours),
        row([0.8, 0.8], subject="small", precision="W4/A4 (avx2)", **ours),
    ]  # fmt: skip
    rate = Rate(runtime="native", precision="int8", image_size=(32, 32), batch=1, threads=1, gmacs_per_second=10, round_ms=[1.0, 1.0])
    found = {made.name: made for made in compared(rows, [rate], 0)}
    assert {made.to_peer.to for made in found.values()} == {"plain, compiled fp32"}
    for isa in ("avx2", "avx512vnni"):
        small = found[f"small, native W4/A4 ({isa})"]
        assert (small.to_unmodified.to, small.to_unmodified.value) == (f"plain, native W8/A8 ({isa})", 0.8)
        assert small.limit_share == pytest.approx(1e6 / (small.p50_ms / 1e3) / 1e10)


def test_a_model_or_a_row_can_be_named_instead(row) -> None:
    fastest = "small, onnxruntime int8, lean graph"
    for against, row_name in (("small", fastest), (fastest, fastest), ("small, openvino int8",) * 2):
        assert {made.to_peer.to for made in compared(_rows(row), [], 0, against)} == {row_name}


def test_other_models_are_no_peers(row) -> None:
    rows = [row([4.0]), row([1.0], subject="other", original="other", unmodified=True, precision="int8"), row([3.0], subject="small")]
    found = {made.subject: made.to_peer.to for made in compared(rows, [], 0)}
    assert found == {"plain": "plain, torch fp32", "small": "plain, torch fp32", "other": "other, torch int8"}


def test_the_file_the_tables_and_the_chart(row, tmp_path: Path) -> None:
    left_out = [LeftOut(name="plain, openvino bf16 hint", why="this CPU has no bf16")]
    rows = compared(_rows(row), [], 0)
    made = Benchmark(seed=0, rounds=3, environment={"cpu": "some"}, rates=[], rows=rows, left_out=left_out)
    save_benchmark(made, tmp_path / "bench.json")
    assert load_benchmark(tmp_path / "bench.json") == made
    shown = io.StringIO()
    Console(file=shown, width=160).print(format_benchmark(made))
    for words in ("plain, openvino fp32", "0.500", "[1.000, 2.000]", "simulated in fp32", "left out: plain, openvino bf16 hint: this CPU"):
        assert words in shown.getvalue()
    assert [path.name for path in draw_chart(made, tmp_path)] == ["ratios.png", "ratios.svg"]
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert "small, int8" in (tmp_path / "ratios.svg").read_text() or "<path" in (tmp_path / "ratios.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vitfrost results"}, "is not a result of vitfrost bench"),
        ({"version": 2}, "has result of vitfrost bench version 2, this vitfrost reads up to 1; update vitfrost"),
        ({"extra": 1}, "extra is not known here"),
        ({"rows": []}, r"is damaged: rows is \[\]"),
        ({"rounds": 0}, "is damaged: rounds is 0"),
    ],
)
def test_files_that_are_no_results(row, tmp_path: Path, change: dict, message: str) -> None:
    made = Benchmark(seed=0, rounds=3, environment={}, rates=[], rows=compared(_rows(row), [], 0))
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**made.model_dump(mode="json"), **change}))
    with pytest.raises(VitfrostError, match=message):
        load_benchmark(path)
