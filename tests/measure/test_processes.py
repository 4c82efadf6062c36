"""Two processes under torchrun measure the same as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from vitfrost.measure.accuracy import evaluate
from vitfrost.vit.load import load_model

CALL = """
import sys
from vitfrost.measure.accuracy import evaluate
row = evaluate("vitfrost_digits", sys.argv[1], weights="random", reference="vitfrost_digits", reference_weights=sys.argv[2],
               batch_size=4, json=sys.argv[3], progress=False)
print("nothing" if row is None else row.images)
"""


def test_two_processes_give_the_row_of_one(pictures: Path, tmp_path: Path) -> None:
    folder, other, target = tmp_path / "images", tmp_path / "other.safetensors", tmp_path / "row.json"
    shutil.copytree(pictures, folder)
    (folder / "0005.png").write_bytes(b"no picture")
    save_file(load_model("vitfrost_digits", "random", seed=1).model.state_dict(), other)
    (tmp_path / "call.py").write_text(CALL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "call.py")]
    done = subprocess.run(
        [*launch, str(folder), str(other), str(target)],
        capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["39", "nothing"]
    alone = evaluate(
        "vitfrost_digits", folder, weights="random", reference="vitfrost_digits", reference_weights=other, batch_size=4, progress=False
    )
    expected = alone.model_dump(mode="json", exclude={"seconds_per_image", "threads"})
    found = {key: value for key, value in json.loads(target.read_text()).items() if key in expected}
    assert expected["skipped"] == 1
    assert expected["kl"] > 0
    assert found == {**expected, "kl": pytest.approx(expected["kl"]), "kl_interval": pytest.approx(expected["kl_interval"])}
