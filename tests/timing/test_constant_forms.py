"""The form of constant heads that is chosen is the one that took the least time, and changes nothing but time."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import vitfrost
from vitfrost.configs import Bench, FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.model import Model
from vitfrost.timing.benchmark import load_benchmark
from vitfrost.timing.constant_forms import choose_forms, constant_forms
from vitfrost.timing.table import format_benchmark


def heads(side: int, window: int | None = 3, count: int = 2) -> ConstantHeads:
    shape = Shape((side, side), 1)
    kind = "dense" if window is None else "local"
    return ConstantHeads([(kind, window)] * count, shape, (1, shape.tokens, shape.tokens), 8).eval()


def test_the_fastest_form_is_taken_by_every_layer() -> None:
    layers = nn.ModuleDict({"small": heads(4), "large": heads(12), "again": heads(12), "dense": heads(4, None)})
    values = {name: torch.rand(2, 2, layer.shape.tokens, 8) for name, layer in layers.items()}
    before = {name: layer(values[name]) for name, layer in layers.items()}
    chosen = choose_forms(layers, 2, rounds=3)
    assert {name: set(found.seconds) for name, found in chosen.items()} == {
        "small": {"matmul", "convolution"}, "large": {"matmul", "convolution"}, "again": {"matmul", "convolution"}, "dense": set()
    }  # fmt: skip
    for name, layer in layers.items():
        found = chosen[name]
        assert layer.form == found.form
        assert found.failed == {}
        if found.seconds:
            assert found.seconds[found.form] == min(found.seconds.values()) > 0
        torch.testing.assert_close(layer(values[name]), before[name])
    assert chosen["dense"].form == "matmul"
    assert chosen["again"] is chosen["large"]  # layers that are alike are timed once


def test_forms_that_cannot_be_run_are_left_out_with_the_reason() -> None:
    class NoConvolution(ConstantHeads):
        def _convolve(self, values: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
            raise RuntimeError("no kernel image\nat all")

    shape = Shape((4, 4), 0)
    layer = NoConvolution([("local", 3)], shape, (1, 16, 16), 8).eval()
    chosen = choose_forms(nn.ModuleDict({"layer": layer}), 1, rounds=1)
    assert chosen["layer"].form == layer.form == "matmul"
    assert chosen["layer"].failed == {"convolution": "RuntimeError: no kernel image"}

    class Nothing(NoConvolution):
        def _multiply(self, values: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(VitfrostError, match=r"layer.*out of memory"):
        choose_forms(nn.ModuleDict({"layer": Nothing([("local", 3)], shape, (1, 16, 16), 8).eval()}), 1, rounds=1)


def test_forms_in_words() -> None:
    one, two, three = heads(4), heads(4), heads(4)
    assert constant_forms(nn.Linear(1, 1)) is None
    assert constant_forms(nn.Sequential(one, two)) == one.form
    for layer, form in ((one, "matmul"), (two, "convolution"), (three, "convolution")):
        layer.use(form)  # type: ignore[arg-type]
    assert constant_forms(nn.Sequential(one, two, three)) == "2 convolution, 1 matmul"


def test_copies_made_in_inference_mode_are_folded() -> None:
    layer = heads(4)
    with torch.inference_mode():
        copied = copy.deepcopy(layer)
        values = torch.rand(1, 2, 17, 8)
        torch.testing.assert_close(copied(values), layer(values))


def test_rows_say_which_form_ran(tmp_path: Path) -> None:
    loaded = Model.open("vitfrost_digits", weights="random", options={"depth": 2})
    plan = vitfrost.plan(loaded, FreezeHeads(0.5, "layer", kind="local", window=3))
    vitfrost.compress(loaded, plan, out=tmp_path / "frozen")
    made = vitfrost.bench(
        tmp_path / "frozen", Bench(runtime=("torch",), rounds=1, memory=False), json=tmp_path / "bench.json", progress=False
    )
    forms = {row.subject: row.constant_forms for row in made.rows}
    (peer,) = set(forms) - {"frozen"}
    assert forms["frozen"] in ("matmul", "convolution")
    assert forms[peer] is None
    older = json.loads((tmp_path / "bench.json").read_text())
    for row in older["rows"]:
        del row["constant_forms"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert [row.constant_forms for row in load_benchmark(tmp_path / "older.json").rows] == [None, None]
    console = Console(width=200, file=io.StringIO())
    console.print(format_benchmark(made))
    assert "constant heads" in console.file.getvalue()  # type: ignore[attr-defined]
