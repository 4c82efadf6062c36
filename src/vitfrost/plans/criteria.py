"""What makes an attention entry a good one to freeze: one function per criterion, the lowest scores are frozen first.

Shapes: W windows, H heads, Q queries, K keys; scores are [W, H, Q, K]. A new criterion is one function in CRITERIA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from ..errors import VitfrostError

Scores = Float[np.ndarray, "windows heads queries keys"]


@runtime_checkable
class SensitivityArrays(Protocol):
    """Squared errors made by a constant in place of each weight A: E[g^2 (A - constant)^2], g the gradient of the
    log-likelihood by A, and E[||W_O v||^2 (A - constant)^2]."""

    def fisher_error(self, constant: Scores) -> Scores: ...
    def output_error(self, constant: Scores) -> Scores: ...


@runtime_checkable
class SiteArrays(Protocol):
    """The statistics of one attention site that plans need.

    `value_norm` is E||W_O v_j||^2, the mean squared norm of what key j's value adds to the layer's output through a head.
    `allowed` tells which pairs the shift mask lets see each other (None: all); the other entries are never frozen.
    `sensitivity` is None where it was not measured.
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
    @property
    def sensitivity(self) -> SensitivityArrays | None: ...


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


def largest_entropy(site: SiteArrays, seed: int, index: int) -> Scores:
    """Highest entropy first: the paper's choice turned round, a control for how much the choice matters."""
    return -site.entropy


def output_error_joint(site: SiteArrays, seed: int, index: int) -> Scores:
    """Squared error at the layer's output, E[(A - A^mu)^2 ||W_O v||^2], with maps and values taken together.

    Raises VitfrostError for statistics without sensitivity.
    """
    return _sensitivity(site, "output-error-joint").output_error(site.mean)


def fisher(site: SiteArrays, seed: int, index: int) -> Scores:
    """E[g^2 (A - A^mu)^2] with g = d log p(y) / d A and y drawn from the model's own prediction p.

    To second order, changing the maps by delta moves the outputs by KL = 1/2 delta^T F delta, where F = E[g g^T] is the Fisher
    information (Gauss-Newton matrix); this is twice the part of one entry alone, delta = A^mu - A. The same estimate
    removes feature maps in Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning".
    Raises VitfrostError for statistics without sensitivity.
    """
    return _sensitivity(site, "fisher").fisher_error(site.mean)


def _sensitivity(site: SiteArrays, name: str) -> SensitivityArrays:
    if site.sensitivity is None:
        raise VitfrostError(f"criterion {name} needs statistics taken with --sensitivity; calibrate again with it")
    return site.sensitivity


Criterion = Callable[[SiteArrays, int, int], Scores]

CRITERIA: dict[str, Criterion] = {
    "entropy": entropy,
    "mean": mean,
    "variance": variance,
    "random": random,
    "output-error": output_error,
    "largest-entropy": largest_entropy,
    "output-error-joint": output_error_joint,
    "fisher": fisher,
}
"""By name; each takes the site's statistics, the plan's seed, and the index of the site in the model."""

NEED_SENSITIVITY = frozenset({"output-error-joint", "fisher"})
"""Criteria that need statistics taken with gradients (`calibrate --sensitivity`)."""
