"""What makes an attention entry a good one to freeze: one function per criterion, the lowest scores are frozen first.

Shapes: W windows, H heads, Q queries, K keys; scores are [W, H, Q, K]. A new criterion is one function in CRITERIA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

Scores = Float[np.ndarray, "windows heads queries keys"]


@runtime_checkable
class SiteArrays(Protocol):
    """The statistics of one attention site that plans need.

    `value_norm` is E||W_O v_j||^2, the mean squared norm of what key j's value adds to the layer's output through a head.
    `allowed` tells which pairs the shift mask lets see each other (None: all); the other entries are never frozen.
    """

    @property
    def maps_shape(self) -> tuple[int, int, int, int]: ...
    @property
    def allowed(self) -> Bool[np.ndarray, "windows queries keys"] | None: ...
    @property
    def mean(self) -> Scores: ...
    @property
    def variance(self) -> Scores: ...
    @property
    def entropy(self) -> Scores: ...
    @property
    def value_norm(self) -> Float[np.ndarray, "windows heads keys"]: ...


def entropy(site: SiteArrays, seed: int, index: int) -> Scores:
    """Entropy over images of the entry's histogram, EAM equations 10-13; the paper's choice."""
    return site.entropy


def mean(site: SiteArrays, seed: int, index: int) -> Scores:
    """Mean over images: entries that hardly matter first."""
    return site.mean


def variance(site: SiteArrays, seed: int, index: int) -> Scores:
    """Variance over images: the squared error made by replacing the entry with its mean."""
    return site.variance


def random(site: SiteArrays, seed: int, index: int) -> Scores:
    """Uniform draws in [0, 1) from (seed, index of the site, head), so a head's ranking does not depend on other heads."""
    windows, heads, queries, keys = site.maps_shape
    draws = [np.random.default_rng((seed, index, head)).random((windows, queries, keys)) for head in range(heads)]
    return np.stack(draws, axis=1)


def output_error(site: SiteArrays, seed: int, index: int) -> Scores:
    """Squared error at the layer's output: E[(A - A^mu)^2] E||W_O v||^2.

    This is E[(A - A^mu)^2 ||W_O v||^2] with maps and values taken as independent.
    """
    return site.variance * site.value_norm[:, :, None, :]


Criterion = Callable[[SiteArrays, int, int], Scores]

CRITERIA: dict[str, Criterion] = {
    "entropy": entropy,
    "mean": mean,
    "variance": variance,
    "random": random,
    "output-error": output_error,
}
"""By name; each takes the site's statistics, the plan's seed, and the index of the site in the model."""
