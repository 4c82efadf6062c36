"""The kernels for GPUs: interpreted, they equal the explicit maps; they compile to machine code; compiled models hold them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
TOLERANCES = {"float32": 2e-6, "bfloat16": 0.02, "float16": 0.003}
pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed; it comes with vitfrost[gpu] on Linux"),
    pytest.mark.xdist_group("triton"),  # one interpreter for all
]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """A process with the interpreter, asked in JSON."""
    command = [sys.executable, str(HERE / "interpreted.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def answer(what: str, **given: Any) -> dict[str, Any]:
        try:
            process.stdin.write(json.dumps({"what": what, **given}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = process.stdout.readline()
        if not line:
            pytest.fail(f"the interpreter's process ended: {process.communicate()[1][-3000:]}")
        return json.loads(line)

    yield answer
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def for_gpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What for_gpus.py prints; nothing that another run has compiled is used."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    ended = subprocess.run([sys.executable, str(HERE / "for_gpus.py")], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@settings(max_examples=6)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 9)), prefix=st.sampled_from([0, 1, 2, 5]),
    windows=st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=2), width=st.integers(1, 9), images=st.integers(1, 2),
    kind=st.sampled_from(list(TOLERANCES)), before=st.integers(0, 2), seed=st.integers(0, 1000),
)  # fmt: skip
@example(grid=(5, 9), prefix=5, windows=[3], width=5, images=1, kind="float32", before=1, seed=0)  # four tiles, four pieces
@example(grid=(4, 8), prefix=0, windows=[3], width=8, images=2, kind="float32", before=0, seed=0)  # whole tiles, whole pieces
@example(grid=(2, 6), prefix=1, windows=[9, 3], width=3, images=1, kind="float32", before=0, seed=0)  # 3 x 9 and 3 x 3: all keys
def test_the_interpreted_kernels_equal_explicit_maps(ask: Ask, kind: str, **given: Any) -> None:
    answer = ask("apply", kind=kind, **given)
    assert answer["folded"] == ["triton"]  # or another form was compared
    assert answer["distance"] < TOLERANCES[kind]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_runs_the_kernels(ask: Ask, backend: str) -> None:
    assert ask("compiled", backend=backend)["distance"] < 1e-5


def test_exported_graphs_have_operators_that_all_runtimes_know(ask: Ask) -> None:
    answer = ask("exported")
    assert answer["foreign"] == []
    assert answer["distance"] < 1e-5


def test_the_convolution_runs_where_gradients_are_wanted(ask: Ask) -> None:
    assert ask("trained") == {"values": True, "ran": ["convolution"], "constants": True}


def test_a_cpu_never_tries_the_kernels_by_itself(ask: Ask) -> None:
    assert ask("chosen")["forms"] == ["matmul", "convolution"]


def test_both_kernels_compile_to_machine_code(for_gpus: dict[str, Any]) -> None:
    made = for_gpus["kernels"]
    assert {(each["kernel"], each["processor"]) for each in made} == {(kernel, on) for kernel in ("_sums", "_mix") for on in (80, 90)}
    assert all(each["bytes"] > 1000 for each in made)


def test_torch_compile_takes_the_operator_apart_on_a_gpu(for_gpus: dict[str, Any]) -> None:
    made = for_gpus["graph"]
    assert made["folded"] == ["triton"]
    assert made["shape"] == [3, 2, 21, 16]
    kernels = [name for name in made["operators"] if name == "triton_kernel_wrapper_functional"]
    assert len(kernels) == 2
    assert [name for name in made["operators"] if "vitfrost" in name or "conv" in name or "mm" in name] == []
    assert [name for name in made["operators"] if name.startswith("writes")] == ["writes sums", "writes out"]
