"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.errors import VitfrostError
from vitfrost.files import (
    atomic_file,
    atomic_folder,
    read_json,
    refuse_existing,
    refuse_unwritable,
    scratch_folder,
    sha256_of_file,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("text", "message"), [("{", "not readable JSON"), ("\udcff", "not readable JSON"), (None, "no file")])
def test_unreadable_json_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "value.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VitfrostError, match=f"{message}|{message} {path}") as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_values_that_json_does_not_know_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", float("nan"))
    assert not any(tmp_path.iterdir())


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def _write_half(kind: str, path: Path, problem: BaseException) -> None:
    """Begin to write a file or a folder and run into a problem."""
    with atomic_file(path) if kind == "file" else atomic_folder(path, overwrite=True) as place:
        (place if kind == "file" else place / "item").write_text("half")
        raise problem


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (RuntimeError("a mistake"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, os.strerror(28)), VitfrostError),
    ],
)
def test_a_problem_on_the_way_changes_nothing(tmp_path: Path, kind: str, problem: BaseException, told: type[BaseException]) -> None:
    old = tmp_path / "old"
    item = old if kind == "file" else old / "item"
    item.parent.mkdir(exist_ok=True)
    item.write_text("whole")
    for path in (old, tmp_path / "new"):
        with pytest.raises(told) as caught:
            _write_half(kind, path, problem)
        if told is VitfrostError:
            assert str(caught.value) == f"cannot write {path}: No space left on device; nothing was changed"
    assert item.read_text() == "whole"
    assert set(tmp_path.rglob("*")) == {old, item}


@pytest.mark.parametrize("length", [250, 300])
def test_names_that_are_too_long_are_told(tmp_path: Path, length: int) -> None:
    with pytest.raises(VitfrostError, match="File name too long"):
        write_text(tmp_path / ("x" * length), "text")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "folder", overwrite=True) as place:
            (place / content).write_text(content)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "two"]
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
    with pytest.raises(VitfrostError, match="add --overwrite"), atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as place:
        (place / "item").write_text("x")
    assert (tmp_path / "empty" / "item").is_file()


def test_a_scratch_folder_is_empty_and_goes(tmp_path: Path) -> None:
    place = tmp_path / "new" / "scratch"
    (place / "left").mkdir(parents=True)
    with scratch_folder(place) as folder:
        assert folder == place
        assert not any(folder.iterdir())
        (folder / "item").write_text("x")
    assert not place.exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VitfrostError, match="cannot write into"), scratch_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_places_that_cannot_be_written_are_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for place, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path / "file" / "below" / "x", "is a file; name a place in a folder"),
    ):
        with pytest.raises(VitfrostError, match=message):
            refuse_unwritable(place)
        with pytest.raises(VitfrostError, match=message):
            write_text(place, "text")
    with pytest.raises(VitfrostError, match="name a folder"):
        refuse_existing(tmp_path / "pipe")
    with pytest.raises(VitfrostError, match="name a place in a folder"):
        refuse_existing(tmp_path / "file" / "x")
    refuse_unwritable(tmp_path / "file")
    refuse_unwritable(tmp_path / "new" / "x")
    refuse_unwritable("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vitfrost.files import atomic_file, atomic_folder
make = {"file": atomic_file, "folder": lambda path: atomic_folder(path, overwrite=True)}[sys.argv[1]]
with make(Path(sys.argv[2])) as place:
    (place / "item" if place.is_dir() else place).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", [False, True])
def test_a_killed_process_leaves_the_old_or_nothing(tmp_path: Path, kind: str, old: bool) -> None:
    path = tmp_path / "out"
    item = path / "item" if kind == "folder" else path
    if old:
        item.parent.mkdir(exist_ok=True)
        item.write_text("whole")
    ended = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert path.exists() == old
    assert not old or item.read_text() == "whole"
    leftovers = [found.name for found in tmp_path.iterdir() if found != path]
    assert len(leftovers) == 1
    assert leftovers[0].startswith(".out.")
    assert leftovers[0].endswith(".part")


def test_what_killed_processes_left_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    ended, alive = process.pid, os.getppid()
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("")
        machine = temporary.name.split(".")[3]
    for name in (f".a.{ended}.part", f".a.{ended}.{machine}.part", f".a.{alive}.{machine}.part", f".a.{ended}.00000000.part", ".a.x.part"):
        (tmp_path / name).write_text("left")
    (tmp_path / f".b.{ended}.{machine}.abc_1234.part" / "inside").mkdir(parents=True)
    write_text(tmp_path / "a", "whole")
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".a")} == {
        f".a.{alive}.{machine}.part", f".a.{ended}.00000000.part", ".a.x.part",
    }  # fmt: skip
    with atomic_folder(tmp_path / "b"):
        pass
    assert not list(tmp_path.glob(".b*"))


def test_a_folder_whose_process_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("")
        machine = temporary.name.split(".")[3]
    old = tmp_path / f".b.{process.pid}.{machine}.abcdefgh.old"
    old.mkdir()
    (old / "kept").write_text("")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "b"):
        raise KeyError
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["kept"]
