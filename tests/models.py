"""Small models with random weights."""

from __future__ import annotations

from typing import Any

from vitfrost.model import Model


def random_model(name: str, image_size: int | tuple[int, int] | None = None, *, seed: int = 0, **options: Any) -> Model:
    """A timm model of the given options, untrained."""
    return Model.open(name, weights="random", image_size=image_size, options=options, seed=seed)
