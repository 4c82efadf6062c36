"""Devices by name; what is on another device than the CPU is compressed and saved as on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, FreezeEntries, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.load import device_of, find_device


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert device_of(Model.open("vitfrost_digits", device="cpu").module) == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(VitfrostError, match="device") as refused:
        find_device(name)
    assert "\n" not in str(refused.value)


def test_commands_refuse_before_they_work(call: Callable, pictures: Path, tmp_path: Path) -> None:
    for words in (
        ("calibrate", "--model", "vitfrost_digits", "--images", pictures, "--out", tmp_path / "statistics.safetensors"),
        ("evaluate", "--model", "vitfrost_digits", "--images", pictures),
    ):
        called = call(*words, "--device", "cuda:99")
        assert (called.status, called.err.count("\n")) == (2, 1)
        assert "cuda:99" in called.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_what_the_cpu_gives(pictures: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        loaded = Model.open("vitfrost_digits", device=device)
        statistics = vitfrost.calibrate(loaded, pictures, vitfrost.Calibrate(limit=8, similarity=True), progress=False)
        chosen = vitfrost.plan(statistics, FreezeEntries(0.2), Hallucinate(0.5), Compact(0.5), Quantize(8, 8))
        made = vitfrost.compress(
            loaded, chosen, statistics=statistics, images=pictures, out=tmp_path / device, config=Compress(calibration_images=4)
        )
        assert device_of(made.module).type == "cpu"
        artifact = Model.open(tmp_path / device, device=device)
        row = vitfrost.evaluate(artifact, pictures, reference=loaded, progress=False)
        found[device] = (statistics.moments, row.kl, Artifact.load(tmp_path / device))
    assert torch.allclose(torch.from_numpy(found["cpu"][0]), torch.from_numpy(found["cuda"][0]), rtol=1e-3, equal_nan=True)
    assert found["cpu"][1] == pytest.approx(found["cuda"][1], rel=0.2)
