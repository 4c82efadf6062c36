"""Files that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .errors import VitfrostError
from .records import read_plain
from .regular import open_regular

_DAY = 86400  # seconds


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def refuse_unwritable(path: str | Path) -> None:
    """Find out before the work, not after it, that no file can be written at `path`; nothing is created.

    Raises VitfrostError for a folder, for anything else that is no regular file (a device, a pipe), for a place below a
    file, and for a folder that may not be written to.
    """
    path = Path(path)
    try:
        folder, other = path.is_dir(), path.exists() and not path.is_file()
    except OSError as error:
        raise VitfrostError(f"cannot write {path}: {_reason(error)}") from error
    if folder:
        raise VitfrostError(f"{path} is a folder; name a file to write")
    if other:
        raise VitfrostError(f"{path} is no regular file; name a file to write")
    _refuse_parent(path)


def _refuse_parent(path: Path) -> None:
    try:
        folder = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise VitfrostError(f"cannot write {path}: {_reason(error)}") from error
    if not folder.is_dir():
        raise VitfrostError(f"cannot write {path}: {folder} is a file; name a place in a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise VitfrostError(f"cannot write {path}: no permission to write into {folder}; name another place")


def _remove_left(path: Path) -> None:
    """Remove what processes that were killed left beside `path`. What a process that lives is writing stays.

    The name of a part says which process makes it, and on which machine; of another machine's, only what is a day old is removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        found = re.fullmatch(r"(\d+)(?:\.([0-9a-f]{8}))?(?:\.\w+)?\.(?:part|old)", left.name[len(path.name) + 2 :])
        if found is None:
            continue
        with suppress(OSError):
            here = found[2] in (None, _machine())
            if (here and _lives(int(found[1]))) or (not here and time.time() - left.stat().st_mtime < _DAY):
                continue
            if left.suffix == ".old" and not path.exists():  # killed between two renames: what was there is put back
                os.replace(left, path)
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@cache
def _machine() -> str:
    """Eight letters that tell this machine, since it was started, from others that may share the disk."""
    told = platform.node().encode()
    with suppress(OSError):
        told = Path("/proc/sys/kernel/random/boot_id").read_bytes() + str(os.stat("/proc/self/ns/pid").st_ino).encode()
    return hashlib.sha256(told).hexdigest()[:8]


def _prepare_parent(path: Path) -> None:
    _refuse_parent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VitfrostError(f"cannot create the folder {path.parent}: {_reason(error)}") from error
    _remove_left(path)


def _mark() -> str:
    """Which process writes: its number and its machine."""
    return f"{os.getpid()}.{_machine()}"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block ends well.

    Raises VitfrostError when the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    path = Path(path)
    refuse_unwritable(path)
    _prepare_parent(path)
    temporary = path.parent / f".{path.name}.{_mark()}.part"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise VitfrostError(f"cannot write {path}: {_reason(error)}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path`; rename it to `path` when the block ends well.

    An existing empty folder is taken over; one with content is an error unless `overwrite`.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    _prepare_parent(path)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{_mark()}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise VitfrostError(f"cannot write into {path.parent}: {_reason(error)}") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o755)
        if path.exists():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise VitfrostError(f"cannot write {path}: {_reason(error)}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; where that fails, `path` is as it was."""
    old = new.with_suffix(".old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder at `path` until the block ends. What a killed process left in it is removed first.

    Raises VitfrostError where it cannot be made.
    """
    path = Path(path)
    _prepare_parent(path)
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
    except OSError as error:
        raise VitfrostError(f"cannot write into {path}: {_reason(error)}") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def refuse_existing(path: Path, overwrite: bool = False) -> None:
    """Raise VitfrostError when no folder can be made at `path`, or it has content and `overwrite` is not set."""
    if path.exists() and not path.is_dir():
        raise VitfrostError(f"{path} is a file; name a folder")
    _refuse_parent(path)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise VitfrostError(f"the folder {path} exists and is not empty; name another one or add --overwrite")


def refuse_existing_run(folder: Path, resume: bool, marker: str, what: str) -> None:
    """Raise VitfrostError where no run can be made: a folder with a run (it holds `marker`) unless `resume`, with anything else, a file."""
    refuse_existing(folder, overwrite=True)
    if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        if not (folder / marker).is_file():
            raise VitfrostError(f"the folder {folder} exists and holds no {what}; name another one")
        if not resume:
            raise VitfrostError(f"{folder} holds a run already; add --resume to finish it, or name another folder")


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, one final newline."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Plain data of a JSON file with today's spelling. Raises VitfrostError where it is missing, unreadable or out of bounds."""
    try:
        return read_plain(path, "JSON")
    except FileNotFoundError as error:
        raise VitfrostError(f"no file {path}") from error


def sha256_of_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
