"""What makes an attention entry a good one to freeze: one function per criterion, the lowest scores are frozen first.

Shapes: W windows, H heads, Q queries, K keys; scores are [W, H, Q, K]. A new criterion is one function here, under
`@criterion`: the command line, recipes, reports and the documentation read what stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import VitfrostError
from ..methods.constant_heads.offsets import MapSums

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


@runtime_checkable
class HeadArrays(Protocol):
    """The statistics of one site by whole heads (see statistics.heads): a sample of a head's weights, each of which stands for `weights` of
    them, at `places` (window, query, key); and sums that kernels are fitted to."""

    @property
    def maps_shape(self) -> tuple[int, int, int, int]: ...
    @property
    def allowed(self) -> Bool[np.ndarray, "windows queries keys"] | None: ...
    @property
    def value_norm(self) -> Float[np.ndarray, "windows heads keys"]: ...
    @property
    def sensitivity(self) -> SensitivityArrays | None: ...
    @property
    def sample(self) -> SiteArrays: ...
    @property
    def weights(self) -> Float[np.ndarray, " sampled"]: ...
    @property
    def places(self) -> tuple[Int[np.ndarray, " sampled"], Int[np.ndarray, " sampled"], Int[np.ndarray, " sampled"]]: ...
    def map_sums(self, head: int) -> MapSums: ...
    def mass_by_offset(self, head: int) -> Float[np.ndarray, "offsets_down offsets_right"]: ...
    def mean_map(self, head: int) -> Float[np.ndarray, "windows queries keys"]: ...


Score = Callable[[SiteArrays, int, int], Scores]
"""(the site's statistics, the plan's seed, the index of the site in the model) -> scores."""


@dataclass(frozen=True)
class Criterion:
    """A criterion with what is said of it.

    `label`: in tables; `chosen`: of the frozen entries, in a sentence; `formula` and `meaning`: in the documentation. `additive`: an error,
    which adds up over a head's entries (others are averaged). `needs_sensitivity`: takes statistics with gradients.
    """

    score: Score
    label: str
    chosen: str
    formula: str
    meaning: str
    additive: bool = False
    needs_sensitivity: bool = False

    def __call__(self, site: SiteArrays, seed: int, index: int) -> Scores:
        """The scores of a site's entries. Raises VitfrostError for statistics without what they take."""
        return self.score(site, seed, index)


CRITERIA: dict[str, Criterion] = {}
"""By name, in the order of the help."""


def criterion(name: str, label: str, chosen: str, formula: str, meaning: str = "", **kind: bool) -> Callable[[Score], Score]:
    """Add a function as the criterion of that name."""

    def add(score: Score) -> Score:
        CRITERIA[name] = Criterion(score, label, chosen, formula, meaning, **kind)
        return score

    return add


@criterion("entropy", "entropy", "those of lowest entropy", "entropy of its histogram", "EAM equation 13, the paper's choice")
def entropy(site: SiteArrays, seed: int, index: int) -> Scores:
    """Entropy over images of the entry's histogram, EAM equations 10-13; the paper's choice."""
    return site.entropy


@criterion("mean", "lowest mean", "those of lowest mean", "A^mu")
def mean(site: SiteArrays, seed: int, index: int) -> Scores:
    """Mean over images: entries that hardly matter first."""
    return site.mean


@criterion("variance", "lowest variance", "those of lowest variance", "E[(A - A^mu)^2]")
def variance(site: SiteArrays, seed: int, index: int) -> Scores:
    """Variance over images: the squared error made by replacing the entry with its mean."""
    return site.variance


@criterion("random", "random", "chosen at random", "a seeded draw", "a control")
def random(site: SiteArrays, seed: int, index: int) -> Scores:
    """Uniform draws in [0, 1) from (seed, index of the site, head), so a head's ranking does not depend on other heads."""
    windows, heads, queries, keys = site.maps_shape
    draws = [np.random.default_rng((seed, index, head)).random((windows, queries, keys)) for head in range(heads)]
    return np.stack(draws, axis=1)


@criterion(
    "output-error", "output error", "those with the lowest estimated output error", "E[(A - A^mu)^2] E[||W_O v||^2]",
    "squared error at the layer's output, with maps and values taken as independent", additive=True,
)  # fmt: skip
def output_error(site: SiteArrays, seed: int, index: int) -> Scores:
    """Squared error at the layer's output: E[(A - A^mu)^2] E||W_O v||^2.

    This is E[(A - A^mu)^2 ||W_O v||^2] with maps and values taken as independent.
    """
    return site.variance * site.value_norm[:, :, None, :]


@criterion(
    "largest-entropy", "largest entropy", "those of highest entropy", "entropy, negated", "a control: the paper's choice turned round"
)
def largest_entropy(site: SiteArrays, seed: int, index: int) -> Scores:
    """Highest entropy first: the paper's choice turned round, a control for how much the choice matters."""
    return -site.entropy


@criterion(
    "output-error-joint", "output error, joint", "those of lowest squared error at the layer's output, taken jointly",
    "E[(A - A^mu)^2 ||W_O v||^2]", "the same as output-error, exactly", additive=True, needs_sensitivity=True,
)  # fmt: skip
def output_error_joint(site: SiteArrays, seed: int, index: int) -> Scores:
    """Squared error at the layer's output, E[(A - A^mu)^2 ||W_O v||^2], with maps and values taken together.

    Raises VitfrostError for statistics without sensitivity.
    """
    return _sensitivity(site, "output-error-joint").output_error(site.mean)


@criterion(
    "fisher", "Fisher", "those whose freezing moves the outputs least, by the Fisher information",
    "E[g^2 (A - A^mu)^2], g = d log p(y) / d A",
    "twice the second-order estimate of the KL divergence that freezing the weight alone adds at the model's outputs (the diagonal of the "
    "Fisher information, as in Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning). Scores are comparable "
    "between layers, so --scope model makes sense", additive=True, needs_sensitivity=True,
)  # fmt: skip
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
        raise VitfrostError(f"criterion {name} needs statistics taken with Calibrate(sensitivity=True); calibrate again with it")
    return site.sensitivity
