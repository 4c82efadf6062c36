"""Which files are opened: regular ones of a disk. A pipe, a device, or what the kernel makes up may block for ever, or have no end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from .errors import VitfrostError

_MADE_UP, _MEMORY = ("/proc/", "/sys/", "/dev/"), "/dev/shm/"
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link",
}  # fmt: skip


class NotRegular(OSError):
    """There is something else than a regular file or a folder; the text says `what`, and how to mend it."""

    def __init__(self, what: str, path: str | Path):
        self.what = f"{what}, no regular file; save it as one"
        super().__init__(errno.EINVAL, f"it is {self.what}", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def is_file(path: str | Path) -> bool:
    """As `Path.is_file`, of a file that a library is given by its path.

    Raises VitfrostError for what is there and is neither a regular file nor a folder.
    """
    try:
        _refuse(path, os.stat(path))
    except NotRegular as error:
        raise VitfrostError(f"{path} is {error.what}") from error
    except (OSError, ValueError):
        return False
    return True


def open_regular(path: str | Path, follow: bool = True) -> BufferedReader:
    """Open a file to read its bytes; a symbolic link only with `follow`. Raises OSError as `open` does, and NotRegular."""
    _refuse(path, os.stat(path, follow_symlinks=follow))  # a pipe that is opened is a pipe that somebody writes to
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)), "rb")  # noqa: SIM115
    try:
        _refuse(path, os.fstat(file.fileno()))  # it may have been exchanged in between
    except NotRegular:
        file.close()
        raise
    return file


def _refuse(path: str | Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (what := _why_not(path, found)) is not None:
        raise NotRegular(what, path)


def _why_not(path: str | Path, found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
    real = os.path.realpath(path)
    return "made up by the kernel" if real.startswith(_MADE_UP) and not real.startswith(_MEMORY) else None
