"""Small untrained models with statistics of a few pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.model import Model
from vitfrost.statistics.record import Statistics

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cls": ("vit_tiny_patch16_224", {"depth": 3, "img_size": 64}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 64}),
    "average": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64, "class_token": False, "global_pool": "avg"}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "num_heads": (3, 6), "embed_dim": 48, "img_size": 112}),
    "pvt": ("vitfrost_pvt_tiny", {"img_size": 96}),
    "nextvit": ("nextvit_small", {"depths": (1, 1, 5, 1), "img_size": 64}),
    "digits": ("vitfrost_digits", {}),
    "fine": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 128}),  # a grid on which windows save something
}


@dataclass(frozen=True)
class Known:
    """A model and its statistics."""

    model: Model
    statistics: Statistics


class Models:
    """Makes each model once."""

    def __init__(self, pictures: Path):
        self.pictures = pictures
        self._made: dict[str, Known] = {}

    def __getitem__(self, which: str) -> Known:
        if which not in self._made:
            name, options = MODELS[which]
            size = options.get("img_size")
            rest = {key: value for key, value in options.items() if key != "img_size"}
            model = Model.open(name, weights=None if which == "digits" else "random", image_size=size, options=rest)
            self._made[which] = Known(
                model, vitfrost.calibrate(model, self.pictures, vitfrost.Calibrate(limit=6, batch_size=2), progress=False)
            )
        return self._made[which]


@pytest.fixture(scope="session")
def models(pictures: Path) -> Models:
    return Models(pictures)
