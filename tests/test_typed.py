"""The public names are typed: a user's code passes a strict type checker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import vitfrost

HERE = Path(__file__).parent


def test_user_code_passes_a_strict_type_checker_and_mistakes_do_not() -> None:
    # pyproject.toml has the options of --strict for these two files, so the cache that `make lint` leaves is of use
    words = [sys.executable, "-m", "mypy", HERE / "typed_user_code.py", HERE / "typed_mistakes.py"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=240, cwd=HERE.parent)
    errors = re.findall(r"(\w+)\.py:(\d+): error", done.stdout)
    assert errors == [("typed_mistakes", "6"), ("typed_mistakes", "7"), ("typed_mistakes", "8"), ("typed_mistakes", "11")], (
        done.stdout + done.stderr
    )


def test_names_for_the_checker_are_those_that_are_loaded() -> None:
    text = Path(str(vitfrost.__file__)).read_text()
    for_checker = set(re.findall(r"^    from \S+ import (\w+) as \1$", text, flags=re.M))
    assert for_checker | {"__version__"} == set(vitfrost.__all__)
    assert all(getattr(vitfrost, name) is not None for name in vitfrost.__all__)
