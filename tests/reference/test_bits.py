"""Statistics, plans and weights of the bundled model are, bit for bit, those of commit 6e8fddb."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from .bits import portable

HERE = Path(__file__).parent


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round products otherwise")
def test_bits_are_those_of_the_reference(tmp_path: Path) -> None:
    words = [sys.executable, str(HERE / "bits.py"), str(tmp_path)]
    ended = subprocess.run(words, env=portable(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == json.loads((HERE / "bits.json").read_text())
