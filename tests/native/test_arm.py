"""The engine's kernels for Arm, built by Debian's cross compiler and run by qemu-user, where both are installed."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "engine_checks.py"
ARM = "aarch64-linux-gnu"


@pytest.mark.timeout(1800)
def test_logits_on_arm_are_those_of_the_artifacts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not all(map(shutil.which, (f"{ARM}-g++", "qemu-aarch64", "cmake"))):
        pytest.skip("no compiler for Arm, no qemu or no cmake here (g++-aarch64-linux-gnu, qemu-user)")
    described = importlib.util.spec_from_file_location("engine_checks", SCRIPT)
    assert described is not None
    assert described.loader is not None
    checks = importlib.util.module_from_spec(described)
    described.loader.exec_module(checks)
    checks.check_arm(checks.write_seeds(tmp_path / "seeds"), tmp_path / "build")  # raises where logits differ
    said = capsys.readouterr().out
    for seed in checks.ARM_SEEDS:
        for isa in ("i8mm", "dotprod", "portable"):
            assert f"{seed} on {isa}: largest difference of a logit" in said
