"""Results that a run which goes on finds again: each is known by a key, a hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .artifact import CONFIG_FILE
from .files import read_json, sha256_of_file, write_json


def hash_of(*values: Any) -> str:
    """SHA-256 of plain values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def file_key(path: Path) -> str:
    """SHA-256 of a file, or of an artifact's configuration, which holds that of its tensors."""
    return sha256_of_file(path / CONFIG_FILE if path.is_dir() else path)


def found_or_made(path: Path, make: Callable[[], Any]) -> Any:
    """Plain data of the JSON file at `path`, whose name holds its key; made and written first where there is none."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)
