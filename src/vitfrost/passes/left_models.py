"""Quantized models that a killed run left beside its artifact, each known by what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from ..artifact import pack_state, restore_state
from ..errors import VitfrostError
from ..files import atomic_file
from ..plans.schema import Plan
from ..vit.load import hash_state
from .work import Record


@dataclass(frozen=True)
class LeftModels:
    """Models of one plan in a folder. `blank` makes the model that the plan is for, with any weights."""

    folder: Path
    plan: Plan
    blank: Callable[[], nn.Module]

    def find(self, key: str) -> tuple[nn.Module, Record] | None:
        """The model with this key and its record; None where there is none, or its file is damaged. It computes the same bits."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                record = json.loads(file.metadata()["record"])
            return restore_state(self.blank(), self.plan, load_file(path)), record
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, VitfrostError):
            return None

    def keep(self, key: str, model: nn.Module, record: Record) -> None:
        """Write a model down. Raises VitfrostError where it cannot be written."""
        with atomic_file(self._path(key)) as temporary:
            save_file(pack_state(model), temporary, metadata={"record": json.dumps(record)})

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def key_of(models: list[nn.Module], batches: list[Tensor], *values: object) -> str:
    """SHA-256 of the states of models, of images, and of what values print as."""
    digest = hashlib.sha256(repr(values).encode())
    for model in models:
        digest.update(hash_state(model).encode())
    for batch in batches:
        digest.update(batch.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
