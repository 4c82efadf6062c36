"""A benchmark of the bundled model on PyTorch, and rows that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.configs import Bench
from vitfrost.timing import roofline
from vitfrost.timing import rounds as timing
from vitfrost.timing.benchmark import Benchmark, BenchRow


@pytest.fixture(autouse=True, scope="session")
def small_products() -> None:
    """The limit of the machine, from products that are quick to compute, and short turns."""
    patch = pytest.MonkeyPatch()
    patch.setattr(roofline, "SIDE", 128)
    patch.setattr(timing, "SLOT_SECONDS", 0.01)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Benchmark]:
    """The folder and the result of `vitfrost_digits` on PyTorch at two batch sizes, with memory."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    made = vitfrost.bench("timm:vitfrost_digits", Bench(runtime=("torch",), batch=(1, 3), rounds=3), out=folder, progress=False)
    return folder, made


@pytest.fixture
def row() -> Callable[..., BenchRow]:
    """A row with what is given and plausible values for the rest."""

    def make(round_ms: list[float], **given: Any) -> BenchRow:
        subject = given.get("subject", "plain")
        plain = {
            "name": f"{subject}, {given.get('runtime', 'torch')} {given.get('precision', 'fp32')}", "subject": subject, "original": "plain",
            "unmodified": subject == "plain", "kind": "executed", "runtime": "torch", "runtime_version": "torch 2", "precision": "fp32",
            "effective_precision": given.get("precision", "fp32"), "device": "cpu", "batch": 1, "threads": 1, "image_size": (32, 32),
            "weights": "random:0", "random_weights": True, "state_hash": "0", "macs": 10**6, "file_bytes": 1, "repetitions": 1,
            "p50_ms": sorted(round_ms)[len(round_ms) // 2], "p90_ms": max(round_ms), "images_per_second": 1e3 / round_ms[0], "cpu": "some",
        }  # fmt: skip
        return BenchRow.model_validate({**plain, "round_ms": round_ms, **given})

    return make
