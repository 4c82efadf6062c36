"""Two processes that know of each other measure the same as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from vitfrost.configs import Evaluate
from vitfrost.evaluation.evaluate import evaluate
from vitfrost.model import Model

from ..processes import torchrun


def test_two_processes_give_the_row_of_one(pictures: Path, tmp_path: Path) -> None:
    folder, other, target = tmp_path / "images", tmp_path / "other.safetensors", tmp_path / "row.json"
    shutil.copytree(pictures, folder)
    (folder / "0005.png").write_bytes(b"no picture")
    save_file(Model.open("vitfrost_digits", weights="random", seed=1).module.state_dict(), other)
    compared = ("--model", "vitfrost_digits", "--weights", "random", "--reference", "vitfrost_digits", "--reference-weights", other)
    both = torchrun("evaluate", *compared, "--images", folder, "--batch-size", 4, "--json", target)
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [bool(out.strip()) for out, _ in said] == [True, False]  # the first one shows the row
    alone = evaluate(
        Model.open("vitfrost_digits", weights="random"),
        folder,
        config=Evaluate(batch_size=4),
        reference=Model.open("vitfrost_digits", weights=other),
        progress=False,
    )
    expected = alone.model_dump(mode="json", exclude={"seconds_per_image", "threads"})
    found = {key: value for key, value in json.loads(target.read_text()).items() if key in expected}
    assert (expected["images"], expected["skipped"]) == (39, 1)
    assert expected["kl"] > 0
    assert found == {**expected, "kl": pytest.approx(expected["kl"]), "kl_interval": pytest.approx(expected["kl_interval"])}
