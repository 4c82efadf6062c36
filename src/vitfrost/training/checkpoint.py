"""What a training run leaves on disk as it goes: its metrics line by line, and its state."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import VitfrostError
from ..files import atomic_file, refuse_unwritable
from ..spelling import american


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


KIND, VERSION = "vitfrost checkpoint", 1


def save_checkpoint(path: Path, state: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) atomically.

    `inputs` are hashes of what the run is made from, by name. Raises VitfrostError where it cannot be written; an earlier checkpoint is
    then as it was.
    """
    with atomic_file(path) as temporary:
        try:
            torch.save({"kind": KIND, "version": VERSION, "inputs": dict(inputs), "state": dict(state)}, temporary)
        except RuntimeError as error:  # torch's archive writer reports a full disk so
            raise VitfrostError(f"cannot write {path}: {str(error).splitlines()[0]}; an earlier checkpoint was left as it was") from error


def load_checkpoint(path: Path, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Read the state back, on the CPU; nothing is unpickled but tensors and plain values.

    Raises VitfrostError for a file that is damaged or of another kind, and, naming it, for an input that has changed.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; each means that the file is no checkpoint
        raise VitfrostError(f"{path} is no readable checkpoint ({type(error).__name__}); delete it to train from the start") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("version") != VERSION:
        raise VitfrostError(f"{path} is no checkpoint of this version of vitfrost; train into another folder")
    if not isinstance(content.get("inputs"), dict) or not isinstance(content.get("state"), dict):
        raise VitfrostError(f"{path} is damaged: it has no inputs or no state; delete it to train from the start")
    changed = [name for name in {**inputs, **content["inputs"]} if inputs.get(name) != content["inputs"].get(name)]
    if changed:
        raise VitfrostError(
            f"{path} was made from another {' and another '.join(changed)}; resume with what it was made from, or train into another folder"
        )
    state: dict[str, Any] = american(content["state"])
    return state
