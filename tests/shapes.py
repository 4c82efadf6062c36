"""Models that have shapes and no values, to be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models are made on the meta device. Their weights are neither drawn, which would take most of the time, nor hashed."""
    timm = import_module("timm")
    create = timm.create_model

    def on_meta(*given: Any, **options: Any) -> Any:
        with torch.device("meta"):  # verbs go back to the CPU, whatever a caller's default device is
            return create(*given, **options)

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", on_meta)
        draw = import_module("timm.layers.weight_init")._trunc_normal_
        patch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *given: tensor if tensor.is_meta else draw(tensor, *given))
        patch.setattr("vitfrost.model.hash_state", lambda model: "0" * 64)
        yield
