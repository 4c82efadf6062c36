"""A stage that fails does not end those that do not need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.runs.stages import Stage, run_stages


def write(path: Path) -> None:
    path.write_text("made")


def test_what_does_not_need_a_failed_stage_is_done(tmp_path: Path) -> None:
    broken = True

    def fail(path: Path) -> None:
        if broken:
            raise VitfrostError("no luck")
        write(path)

    made = [
        Stage("a", "a", (), 1, write),
        Stage("b", "b", ("a",), 1, fail),
        Stage("c", "c", ("b",), 1, write),
        Stage("d", "d", ("a",), 1, write),
        Stage("e", "e", ("c", "d"), 1, write),
    ]
    with pytest.raises(VitfrostError, match="no luck"):
        run_stages(made, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d", "stages.json"}
    with pytest.raises(VitfrostError, match="b failed, and so did f; the first: no luck"):
        run_stages([*made, Stage("f", "f", (), 1, fail)], tmp_path)
    broken = False
    run_stages(made, tmp_path)
    assert (tmp_path / "e").read_text() == "made"
