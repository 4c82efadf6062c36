"""Places that cannot be written: what exists, what is a file or a folder the wrong way round, and a disk that fills up."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from .conftest import contents

MODEL = ("--model", "vitfrost_digits")


def _commands(prepared, images: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes something, less the place."""
    few = ("--images", images, "--limit", 2)
    return {
        "calibrate": ("calibrate", *MODEL, *few, "--out"),
        "plan": ("plan", "--statistics", prepared.statistics, "--out"),
        "compress": ("compress", *MODEL, "--plan", prepared.plan, "--statistics", prepared.statistics, "--images", images, "--out"),
        "evaluate": ("evaluate", *MODEL, *few, "--json"),
        "inspect": ("inspect", *MODEL, "--json"),
        "demo": ("demo", "--out"),
    }


@pytest.mark.parametrize("verb", ["calibrate", "plan", "compress", "evaluate", "inspect", "demo"])
def test_a_place_below_a_file(refused, prepared, pictures: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused(*_commands(prepared, pictures)[verb], tmp_path / "file" / "new" / "out")
    assert f"cannot write {tmp_path / 'file' / 'new' / 'out'}" in line


@pytest.mark.parametrize("verb", ["calibrate", "plan", "evaluate", "inspect"])
def test_a_folder_where_a_file_is_to_be_written(refused, prepared, pictures: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / 'folder'} is a folder; name a file to write" in refused(*_commands(prepared, pictures)[verb], tmp_path / "folder")


@pytest.mark.parametrize("verb", ["compress", "demo"])
def test_a_file_where_a_folder_is_to_be_written(refused, prepared, pictures: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is a file; name a folder" in refused(*_commands(prepared, pictures)[verb], tmp_path / "file")


@pytest.mark.parametrize("verb", ["plan", "evaluate"])
def test_what_is_no_regular_file_is_not_replaced(refused, prepared, pictures: Path, tmp_path: Path, verb: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file; name a file to write" in refused(*_commands(prepared, pictures)[verb], tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write everywhere")
def test_a_folder_without_permission(refused, prepared, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for words in _commands(prepared, pictures).values():
        assert "permission" in refused(*words, tmp_path / "locked" / "out").lower()


def test_an_output_folder_that_exists(refused, call, prepared, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    command = _commands(prepared, pictures)["compress"]
    assert "exists and is not empty; name another one or add --overwrite" in refused(*command, out)
    assert call(*command, out, "--overwrite").status == 0
    assert sorted(contents(tmp_path)) == ["artifact", "artifact/config.json", "artifact/model.safetensors"]


def test_a_run_folder_that_exists(refused, pictures: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(f"kind: vitfrost recipe\nmodel: {{name: vitfrost_digits}}\ncalibration: {{images: {pictures}}}\n")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for more in ((), ("--resume",)):
        assert "exists and holds no run; name another one" in refused("run", recipe, "--out", out, *more)
    (out / "recipe.yaml").write_text("of an earlier run")
    assert "holds a run already; add --resume to finish it, or name another folder" in refused("run", recipe, "--out", out)
    assert "is a file; name a folder" in refused("run", recipe, "--out", recipe, "--resume")
    assert "name a place in a folder" in refused("run", recipe, "--out", recipe / "run")


@pytest.mark.parametrize(("verb", "size"), [("calibrate", 200_000), ("plan", 1_000), ("compress", 100_000), ("evaluate", 500)])
def test_a_disk_that_fills_up(started, prepared, pictures: Path, tmp_path: Path, verb: str, size: int) -> None:
    """No file may grow beyond `size` bytes: writing fails in the middle, as it does where a disk is full."""
    old = {"calibrate": prepared.statistics, "plan": prepared.plan, "compress": prepared.artifact, "evaluate": prepared.plan}[verb]
    out = tmp_path / "out"
    shutil.copytree(old, out) if old.is_dir() else shutil.copy(old, out)
    before = contents(tmp_path)
    more = ("--overwrite",) if verb == "compress" else ()
    process = started(*_commands(prepared, pictures)[verb], out, *more, file_limit=size)
    said, complaint = process.communicate(timeout=200)
    assert (process.returncode, said) == (2, "")
    assert complaint.startswith(f"vitfrost: cannot write {out}: ")
    assert complaint.endswith("nothing was changed\n")
    assert complaint.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_output_to_a_full_disk(started, prepared, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = started("plan", "--statistics", prepared.statistics, "--out", tmp_path / "plan.yaml", stdout=full)
        _, complaint = process.communicate(timeout=200)
    assert process.returncode == 2
    assert complaint == "vitfrost: No space left on device\n"
