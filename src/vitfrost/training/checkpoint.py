"""The state of a training run on disk: one file of tensors and plain values, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import VitfrostError
from ..files import atomic_file
from ..spelling import american

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
