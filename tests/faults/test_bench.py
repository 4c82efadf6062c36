"""What bench refuses, in one line, before anything is measured; and a run that is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitfrost.errors import VitfrostError
from vitfrost.timing.benchmark import load_benchmark
from vitfrost.timing.sessions import find_runtimes

DIGITS = "timm:vitfrost_digits"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([DIGITS, "--batch", "0"], "--batch[0] is 0; it should be greater than or equal to 1"),
        ([DIGITS, "--batch", "1,two"], "--batch: 'two' is not a whole number"),
        ([DIGITS, "--batch", ""], "--batch: '' holds nothing; give values with commas"),
        ([DIGITS, "--threads", "0"], "--threads[0] is 0"),
        ([DIGITS, "--threads", "4096"], "4096 threads are more than the"),
        ([DIGITS, "--rounds", "0"], "--rounds is 0"),
        ([DIGITS, "--seed", "-1"], "--seed is -1"),
        ([DIGITS, "--image-size", "0"], "--image-size[0] is 0"),
        ([DIGITS, "--runtime", "tensorrt"], "--runtime: 'tensorrt' is none of openvino, onnxruntime, native, torch, compiled"),
        ([DIGITS, "--precision", "int4"], "--precision: 'int4' is none of fp32, bf16, int8"),
        ([DIGITS, "--precision", ","], "--precision: ',' holds nothing"),
        ([DIGITS, "--runtime", "torch", "--precision", "int8"], "nothing to measure: vitfrost_digits: no runtime that was asked for"),
        (
            [DIGITS, "--against", "deit", "--runtime", "torch"],
            "--against is deit, which is none of the rows; the models are vitfrost_digits",
        ),
        ([DIGITS, DIGITS], "vitfrost_digits is given twice"),
        (["timm:vitfrost_digit"], "timm has no model 'vitfrost_digit'; did you mean vitfrost_digits"),
        (["vitfrost_digits"], "neither an artifact nor an exported folder; for the timm model write timm:vitfrost_digits"),
        (["nowhere/artifact"], "nowhere/artifact is neither an artifact nor an exported folder"),
        ([DIGITS, "--weights", "nowhere.safetensors"], "no weights file"),
        ([DIGITS, "--images", "nowhere"], "nowhere"),
        ([], "nothing to measure; give artifact folders"),
    ],
)
def test_what_is_out_of_range(refused, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in refused("bench", *words, "--out", tmp_path / "run")


def test_a_place_for_the_result(refused, tmp_path: Path) -> None:
    assert "nowhere to write the result; give --out RUN or --json FILE" in refused("bench", DIGITS)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("")
    assert "holds no run of vitfrost bench" in refused("bench", DIGITS, "--out", tmp_path / "taken")
    assert "is a folder" in refused("bench", DIGITS, "--json", tmp_path / "taken")


def test_an_artifact_has_one_size(refused, prepared, tmp_path: Path) -> None:
    line = refused("bench", prepared.artifact, "--image-size", "48,64", "--out", tmp_path / "run")
    assert "artifact is built for 32x32 px, --image-size is 48, 64; only timm: models are built for any size" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refused, tmp_path: Path) -> None:
    assert "the device 'cuda' cannot be used here" in refused("bench", DIGITS, "--device", "cuda", "--out", tmp_path / "run")


def test_a_gpu_has_pytorch_only() -> None:
    assert find_runtimes(None, "cuda") == (("torch", "compiled"), [])
    with pytest.raises(VitfrostError, match=r"openvino is measured on the CPU only; with --device cuda give Bench.runtime torch,compiled"):
        find_runtimes(("torch", "openvino"), "cuda")


def test_runtimes_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    chosen, absent = find_runtimes(None, "cpu")
    assert "openvino" in absent
    assert {"torch", "compiled"} <= set(chosen)
    with pytest.raises(VitfrostError, match=r"openvino is not installed; pip install 'vitfrost\[export\]'"):
        find_runtimes(("openvino",), "cpu")


def test_a_run_that_is_killed_keeps_its_groups(started: Callable, call: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("bench", "timm:vitfrost_digits", "--weights", "random", "--runtime", "torch", "--no-memory", "--rounds", 3, "--out", folder)
    process = started(*words, "--batch", "1,2,3")
    while process.poll() is None and not list((folder / "groups").glob("[!.]*.json")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.read_bytes() for path in (folder / "groups").glob("[!.]*.json")}
    assert 1 <= len(kept) < 3
    assert not (folder / "bench.json").exists()
    ended = call(*words, "--batch", "1,2,3", "--resume")
    assert ended.status == 0, ended.err
    assert ended.err.count("already there") == len(kept)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert [row.batch for row in load_benchmark(folder / "bench.json").rows] == [1, 2, 3]
