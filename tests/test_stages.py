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

    def fail_too(path: Path) -> None:
        raise VitfrostError("no time")

    with pytest.raises(VitfrostError, match="b failed, and so did f; the first: no luck"):
        run_stages([*made, Stage("f", "f", (), 1, fail_too)], tmp_path)
    with pytest.raises(VitfrostError, match=r"^no luck$"):  # one reason for both
        run_stages([*made, Stage("f", "f", (), 1, fail)], tmp_path)
    broken = False
    run_stages(made, tmp_path)
    assert (tmp_path / "e").read_text() == "made"


def test_whatever_a_stage_raises_ends_itself_alone(tmp_path: Path) -> None:
    """And what reads files as far as they are there goes on with the others."""
    broken = True

    def fail(path: Path) -> None:
        if broken:
            raise MemoryError("no\nroom")
        write(path)

    made = [
        Stage("a", "a", (), 1, fail),
        Stage("b", "b", (), 1, write),
        Stage("c", "c", (), 1, write, optional=("a", "b")),
        Stage("d", "d", (), 1, write, optional=("a",)),
    ]
    with pytest.raises(VitfrostError, match=r"^a failed: MemoryError no; room; mend it and go on with --resume$") as found:
        run_stages(made, tmp_path)
    assert isinstance(found.value.__cause__, MemoryError)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "c", "stages.json"}  # d has nothing that it could read
    before = (tmp_path / "c").stat().st_mtime_ns
    broken = False
    run_stages(made, tmp_path)
    assert (tmp_path / "d").read_text() == "made"
    assert (tmp_path / "c").stat().st_mtime_ns > before  # once more, with everything

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([Stage("e", "e", (), 1, interrupt), Stage("f", "f", (), 1, write)], tmp_path)
    assert not (tmp_path / "f").exists()


def test_what_an_earlier_run_left_is_not_taken_for_what_could_not_be_made(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise VitfrostError("no luck")

    write(tmp_path / "a")  # of other settings
    with pytest.raises(VitfrostError, match=r"^no luck$"):
        run_stages(
            [Stage("a", "a", (), 1, fail), Stage("b", "b", (), 1, write), Stage("c", "c", (), 1, write, optional=("a", "b"))], tmp_path
        )
    assert not (tmp_path / "c").exists()
