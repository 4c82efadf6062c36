"""Statistics as plain arrays, drawn from a seed, with the ties and masks that real ones have."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitfrost.errors import VitfrostError
from vitfrost.identity import Identity
from vitfrost.statistics.sensitivity import Sensitivity

IDENTITY = Identity(name="vitfrost_digits", image_size=(32, 32), weight_tag="random:0", state_hash="ab" * 32, classes=10)


@dataclass
class Site:
    maps_shape: tuple[int, int, int, int]
    mean: np.ndarray
    variance: np.ndarray
    entropy: np.ndarray
    value_norm: np.ndarray
    allowed: np.ndarray | None = None
    sensitivity: Sensitivity | None = None


@dataclass
class Record:
    sites: dict[str, Site]
    content_hash: str = "cd" * 32
    prefix_tokens: int = 1
    compared: bool = True
    name: str = IDENTITY.name
    header: Any = field(init=False)

    def __post_init__(self) -> None:
        signature = [
            {"name": name, "heads": site.maps_shape[1], "maps": list(site.maps_shape), "prefix_tokens": self.prefix_tokens}
            for name, site in self.sites.items()
        ]
        blocks = [
            {"name": f"blocks.{number}.mlp", "width": 24, "hidden": 96, "block": "convolution" if number == 0 else "transformer"}
            for number in range(len(signature))
        ]
        self.header = SimpleNamespace(
            model=IDENTITY.model_copy(update={"name": self.name}), sites=signature, precision="fp32", observed="before",
            images=64, images_hash="ef" * 32, feed_forward=blocks, structure=None,
        )  # fmt: skip

    def head_moments(self, site: str) -> np.ndarray:
        """Second moments of made-up logits; heads of equal parity resemble each other."""
        if not self.compared:
            raise VitfrostError("the statistics do not say how alike heads are; calibrate with Calibrate(similarity=True)")
        heads = self.sites[site].maps_shape[1]
        rng = np.random.default_rng(heads)
        logits = rng.standard_normal((2, 50))[np.arange(heads) % 2] + 0.1 * rng.standard_normal((heads, 50))
        return logits @ logits.T


def _draw_site(shape: tuple[int, int, int, int], seed: int = 0, masked: bool = False, entropy_levels: int = 5) -> Site:
    """Random statistics; entropy takes few values, so that many entries tie."""
    rng = np.random.default_rng(seed)
    windows, heads, queries, keys = shape
    allowed = None
    if masked:
        allowed = rng.random((windows, queries, keys)) < 0.7
        allowed |= np.eye(queries, keys, dtype=bool)
    drawn = Site(
        shape,
        mean=rng.random(shape, dtype=np.float32),
        variance=rng.integers(0, 6, shape).astype(np.float32) / 8,
        entropy=rng.integers(0, entropy_levels, shape).astype(np.float32) / 2,
        value_norm=rng.random((windows, heads, keys), dtype=np.float32),
        allowed=allowed,
    )
    zeroth, first, second = (rng.random(shape) * (rng.random(shape) < 0.5) for _ in range(3))
    drawn.sensitivity = Sensitivity(64, zeroth, first, second, rng.random((windows, heads, keys)), *rng.random((2, *shape)))
    return drawn


def _draw_record(
    shapes: list[tuple[int, int, int, int]], seed: int = 0, masked: bool = False, prefix_tokens: int = 1, **fields: Any
) -> Record:
    sites = {f"blocks.{number}.attn": _draw_site(shape, seed + 100 * number, masked) for number, shape in enumerate(shapes)}
    return Record(sites, prefix_tokens=prefix_tokens, **fields)


@pytest.fixture(scope="session")
def draw_site():
    """Function (maps_shape, seed=0, masked=False, entropy_levels=5) -> statistics of one site."""
    return _draw_site


@pytest.fixture(scope="session")
def draw_record():
    """Function (list of maps_shape, seed=0, masked=False, prefix_tokens=1, **fields of Record) -> statistics of a model."""
    return _draw_record


@pytest.fixture(scope="session")
def identity() -> Identity:
    """The model that the statistics are of."""
    return IDENTITY
