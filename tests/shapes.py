"""Models that have shapes and no values, to be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models are made on the meta device. Their weights are neither drawn, which would take most of the time, nor hashed."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        draw = import_module("timm.layers.weight_init")._trunc_normal_
        patch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *given: tensor if tensor.is_meta else draw(tensor, *given))
        patch.setattr("vitfrost.model.hash_state", lambda model: "0" * 64)
        yield
