"""Killed and resumed runs end with the bits of those that were left alone, and a checkpoint belongs to what it was made from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitfrost.errors import VitfrostError
from vitfrost.training.checkpoint import MetricsFile, load_checkpoint, save_checkpoint
from vitfrost.training.train import train

from .lines import read_metrics

OPTIONS = {"depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.2, "patch_drop_rate": 0.25}
MIXING = {"mixup": 0.8, "chunk": 4}


def weights_of(run: Path) -> bytes:
    return (run / "artifact" / "model.safetensors").read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line.get("loss", line.get("top1"))) for line in read_metrics(run / "metrics.jsonl")]


def test_a_killed_run_ends_with_the_same_bits(written: Callable[..., Path], started: Callable, tmp_path: Path) -> None:
    recipe = written(
        model={"options": OPTIONS}, mixing=MIXING, schedule={"epochs": 20, "warmup": 2}, ema=0.9, drop_until=0.7, evaluate_every=10,
        checkpoint_every={"steps": 7},
    )  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = started("train", recipe, "--out", run)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        lines = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= 20:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (run / "artifact").exists()
    assert (run / "checkpoint.pt").is_file()
    (run / ".checkpoint.pt.1.part").write_bytes(b"what a killed process left")
    train(recipe, run, resume=True, progress=False)
    train(recipe, whole, progress=False)
    assert weights_of(run) == weights_of(whole)
    assert losses(run) == losses(whole)


def test_a_finished_run_is_resumed_without_a_step(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    plan = {"hallucinate": {"share": 0.5, "by": "first"}, "compact": {"ratio": 0.5}}
    recipe = written(plan=plan, model={"weights": "timm", "options": None}, start={"images": str(pictures), "limit": 10})
    run = train(recipe, tmp_path / "run", progress=False)
    kept = ("artifact/model.safetensors", "artifact/config.json", "metrics.jsonl")
    before = [(run / name).read_bytes() for name in kept]
    shutil.rmtree(run / "artifact")
    train(recipe, run, resume=True, progress=False)
    assert [(run / name).read_bytes() for name in kept] == before


def test_another_recipe_or_other_pictures_are_refused(written: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    copied = tmp_path / "pictures"
    shutil.copytree(pictures, copied)
    sources = {"data": {"train": [{"source": str(copied)}]}}
    run = train(written(**sources), tmp_path / "run", progress=False)
    with pytest.raises(VitfrostError, match="made from another recipe; resume with"):
        train(written("other.yaml", **sources, optimizer={"lr": 2e-3}), run, resume=True, progress=False)
    train(written("same.yaml", **sources, log_every=1), run, resume=True, progress=False)
    shutil.copy(copied / "0001.png", copied / "0000.png")
    with pytest.raises(VitfrostError, match="made from another training data; resume with"):
        train(written(**sources), run, resume=True, progress=False)
    state = load_checkpoint(run / "checkpoint.pt", torch.load(run / "checkpoint.pt", weights_only=True)["inputs"])
    assert state["step"] == 10


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK nothing")
    with pytest.raises(VitfrostError, match="is no readable checkpoint"):
        load_checkpoint(path, {})
    torch.save({"model": torch.zeros(1)}, path)
    with pytest.raises(VitfrostError, match="is no checkpoint of this version"):
        load_checkpoint(path, {})
    save_checkpoint(path, {"step": 3}, {"recipe": "a", "plan": "b"})
    with pytest.raises(VitfrostError, match="made from another plan; resume"):
        load_checkpoint(path, {"recipe": "a", "plan": "c"})
    assert load_checkpoint(path, {"recipe": "a", "plan": "b"}) == {"step": 3}


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1}, {})
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from vitfrost.errors import VitfrostError\n"
        "from vitfrost.training.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), {'model': torch.zeros(10**6)}, {})\n"
        "except VitfrostError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"cannot write {path}"), done.stderr
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_metrics_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.write({"step": 1, "loss": 2.0})
    kept = first.position
    first.write({"step": 2, "loss": 1.5})
    first.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    again = MetricsFile(path, kept)
    again.write({"step": 2, "loss": 1.25})
    again.close()
    assert [line["loss"] for line in read_metrics(path)] == [2.0, 1.25]
