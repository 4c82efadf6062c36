"""The metrics of a run, one JSON object per line; the same lines go to TensorBoard where that is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import VitfrostError
from ..files import refuse_unwritable


class MetricsFile:
    """Appends lines to `path`, each flushed; `position` bytes of what is there are kept (the rest is of steps that are done again).

    With `tensorboard` a folder: the numbers are also written there. Raises VitfrostError where nothing can be written, and where the
    package tensorboard is missing.
    """

    def __init__(self, path: Path, position: int = 0, tensorboard: Path | None = None):
        self.path = path
        self._board: Any = None if tensorboard is None else _board(tensorboard)
        refuse_unwritable(path)
        try:
            self._file = open(path, "ab")  # noqa: SIM115  (open as long as the run)
            self._file.truncate(min(position, os.path.getsize(path)))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. Values are numbers, text, lists or None; `step` is in every line."""
        try:
            self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "result"):
                    self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Close the file and TensorBoard's."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _unwritable(self, error: OSError) -> VitfrostError:
        return VitfrostError(f"cannot write {self.path}: {error.strerror}; the last checkpoint is whole, go on with --resume")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise VitfrostError("tensorboard is asked for, but not installed; pip install 'vitfrost[tensorboard]'") from error
    return SummaryWriter(str(folder))
