"""Small recipes for the training tests: the bundled digits model, shallow, on a few pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitfrost.plans.file import overlaid

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def written(pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe for a model of depth 2 on the forty pictures, with changes; returns its path."""

    def write(name: str = "recipe.yaml", **changes: Any) -> Path:
        recipe: dict[str, Any] = {
            "kind": "vitfrost training",
            "version": 1,
            "model": {"name": "vitfrost_digits", "options": {"depth": 2, "embed_dim": 32, "num_heads": 2}},
            "data": {"train": [{"source": str(pictures)}], "evaluation": {"source": str(pictures)}},
            "augment": {"flip": 0.5, "rotate": 10},
            "optimizer": {"lr": 1e-3, "clip": 1.0},
            "schedule": {"epochs": 2, "warmup": 0.5},
            "batch_size": 8,
            "log_every": 2,
            "threads": 1,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(overlaid(recipe, changes), sort_keys=False))
        return path

    return write
