"""Two processes train what one trains: the same global batches, averaged gradients, the same end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitfrost.artifact import Artifact
from vitfrost.errors import VitfrostError
from vitfrost.training.processes import check_norms, share_of_batch
from vitfrost.training.train import train

from ..processes import torchrun
from .lines import read_metrics


def trained_by_two(recipe: Path, out: Path) -> str:
    """What was printed by the training of two processes (statistics/test_calibrate.py starts some by torchrun itself)."""
    started = torchrun("train", recipe, "--out", out)
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return "".join(out for out, _ in said)


BOTH = {"hallucinate": {"share": 0.5, "by": "first"}, "compact": {"ratio": 0.5}}


@pytest.mark.parametrize("plan", [None, BOTH], ids=["plain", "structure"])
def test_two_processes_train_what_one_trains(written: Callable[..., Path], tmp_path: Path, plan: object) -> None:
    recipe = written(
        plan=plan, mixing={"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "chunk": 4}, ema=0.8, evaluate_every=1,
        optimizer={"name": "sgd", "lr": 0.1}, schedule={"epochs": 2},
    )  # fmt: skip
    one = train(recipe, tmp_path / "one", progress=False)
    assert trained_by_two(recipe, tmp_path / "two").count("artifact") == 1
    first, second = (Artifact.load(tmp_path / name / "artifact").module.state_dict() for name in ("one", "two"))
    start = torch.load(one / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert any(not torch.equal(first[key], start[key]) for key in first if key in start)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-5)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    pairs = list(zip(*lines, strict=True))
    assert [a["step"] for a, _ in pairs] == [b["step"] for _, b in pairs]
    for ours, theirs in pairs:
        for key in {"loss", "top1", "images"} & ours.keys():
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share_of_batch(8) == 4
    with pytest.raises(VitfrostError, match="batch_size 7 cannot be shared by 2 processes; give a multiple of 2"):
        share_of_batch(7)


def test_norms_that_cannot_be_synchronized_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    assert check_norms(model, 4, torch.device("cpu")) is model
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(VitfrostError, match="cannot be synchronized on the CPU"):
        check_norms(model, 4, torch.device("cpu"))
    with pytest.raises(VitfrostError, match="too small for BatchNorm; give batch_size at least 4"):
        check_norms(model, 1, torch.device("cpu"))
