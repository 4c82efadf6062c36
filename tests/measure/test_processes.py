"""Two processes under torchrun measure the same as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALL = """
import sys
from vitfrost.measure.accuracy import evaluate
row = evaluate("vitfrost_digits", sys.argv[1], weights="random", reference="vitfrost_digits", reference_weights=sys.argv[3],
               batch_size=4, json=sys.argv[2], progress=False)
print("nothing" if row is None else row.images)
"""


def run(arguments: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launch, *arguments], capture_output=True, text=True, timeout=200, env=environment)


def test_two_processes_give_the_row_of_one(pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vitfrost.vit.load import load_model

    folder = Path(shutil.copytree(pictures, tmp_path / "images"))
    (folder / "0005.png").write_bytes(b"no picture")
    save_file(load_model("vitfrost_digits", "random", seed=1).model.state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "call.py").write_text(CALL)
    rows = []
    for processes, said in ((1, ["39"]), (2, ["39", "nothing"])):
        target = tmp_path / f"row{processes}.json"
        done = run([str(tmp_path / "call.py"), str(folder), str(target), str(tmp_path / "other.safetensors")], processes)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split()) == said
        row = json.loads(target.read_text())
        del row["seconds_per_image"]
        rows.append(row)
    assert rows[0]["skipped"] == 1
    assert rows[0]["kl"] > 0
    assert rows[1] == {**rows[0], "kl": pytest.approx(rows[0]["kl"]), "kl_interval": pytest.approx(rows[0]["kl_interval"])}
