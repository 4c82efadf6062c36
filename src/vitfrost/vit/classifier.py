"""Where a model's classifier is."""

from __future__ import annotations

from typing import Any

from torch import nn


def classifier_of(module: Any) -> tuple[str, nn.Linear] | None:
    """Name and layer of the classifier; of a distilled model's two the first."""
    getter = getattr(module, "get_classifier", None)
    found = getter() if callable(getter) else getattr(module, "head", None)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, nn.Linear):
        return None
    return next((name for name, each in module.named_modules() if each is found), ""), found
