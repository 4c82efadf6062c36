"""Estimates with 95 % intervals: accuracy, paired differences, agreement, divergence, means over seeds.

Formulas only. Outcomes are 0/1 vectors over the same images in the same order; shares are given in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from ..errors import VitfrostError

Z95 = NormalDist().inv_cdf(0.975)


class Estimate(NamedTuple):
    """A value with its 95 % interval (lowest, highest); the interval is None where one value says nothing about spread."""

    value: float
    interval: tuple[float, float] | None


def share(successes: int, images: int) -> Estimate:
    """Percentage of successes with Wilson's score interval (Wilson 1927).

    Center (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n), p = successes / n.
    Raises VitfrostError unless 0 <= successes <= images and images > 0.
    """
    if images <= 0 or not 0 <= successes <= images:
        raise VitfrostError(f"{successes} of {images} images is no share; measure at least one image")
    p, z2 = successes / images, Z95**2
    center = (p + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 * math.sqrt(p * (1 - p) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    low, high = min(center - half, p), max(center + half, p)
    return Estimate(100 * p, (max(0.0, 100 * low), min(100.0, 100 * high)))


def paired_difference(model: Bool[ndarray, " images"], reference: Bool[ndarray, " images"]) -> Estimate:
    """Difference of two accuracies on the same images, model - reference, in percentage points.

    With b images that only the model has right and c that only the reference has right, the value is (b - c) / n and
    the interval is the adjusted Wald interval of Bonett and Price (2012): p1 = (b + 1) / (n + 2), p2 = (c + 1) / (n + 2),
    p1 - p2 +- z sqrt((p1 + p2 - (p1 - p2)^2) / (n + 2)). Only discordant pairs matter, as in McNemar's test, and
    without any the interval is still +-2.8 / (n + 2) (times 100) instead of nothing.
    Raises VitfrostError for no images.
    """
    images = len(model)
    if images == 0:
        raise VitfrostError("no outcomes to compare; measure both models on at least one image")
    only_model = int(np.count_nonzero(model & ~reference))
    only_reference = int(np.count_nonzero(reference & ~model))
    p1, p2 = (only_model + 1) / (images + 2), (only_reference + 1) / (images + 2)
    half = Z95 * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / (images + 2))
    value = (only_model - only_reference) / images
    return Estimate(100 * value, (100 * max(-1.0, p1 - p2 - half), 100 * min(1.0, p1 - p2 + half)))


def divergences(
    reference_logits: Float[ndarray, "images classes"], model_logits: Float[ndarray, "images classes"]
) -> Float[ndarray, " images"]:
    """KL(reference || model) of the softmax outputs of each image, in nats, computed in float64."""
    log_p, log_q = _log_softmax(reference_logits), _log_softmax(model_logits)
    return np.maximum(0.0, np.sum(np.exp(log_p) * (log_p - log_q), axis=1))


def mean(values: Float[ndarray, " images"]) -> Estimate:
    """Mean of many independent non-negative values with the normal interval mean +- z s / sqrt(n), cut off at 0.

    Raises VitfrostError for no values.
    """
    if len(values) == 0:
        raise VitfrostError("no values to average; measure at least one image")
    value = float(np.mean(values))
    if len(values) == 1:
        return Estimate(value, None)
    half = Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(value, (max(0.0, value - half), value + half))


def mean_likeness(values: Float[ndarray, " images"]) -> Estimate:
    """Mean of many independent values of at most 1, such as cosines, with the normal interval, cut off at 1.

    Raises VitfrostError for no values.
    """
    distance = mean(1 - values)
    value, half = 1 - distance.value, 0.0 if distance.interval is None else distance.interval[1] - distance.value
    return Estimate(value, None if distance.interval is None else (value - half, min(1.0, value + half)))


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> Estimate:
    """Mean of a few runs (calibration seeds) with the expanded percentile bootstrap interval (Hesterberg 2015).

    Plain percentiles are too narrow for few values (about 84 % instead of 95 % for five); the level is therefore
    Phi(-sqrt(n / (n-1)) t) with Student's t quantile. The interval never reaches beyond the extreme values.
    Same seed, same interval. Raises VitfrostError for no values.
    """
    runs = np.asarray(values, dtype=np.float64)
    if len(runs) == 0:
        raise VitfrostError("no runs to average; give the results of at least one seed")
    value = float(np.mean(runs))
    if len(runs) == 1:
        return Estimate(value, None)
    from scipy.special import stdtrit

    count = len(runs)
    level = NormalDist().cdf(-math.sqrt(count / (count - 1)) * float(stdtrit(count - 1, 0.975)))
    picks = np.random.default_rng(seed).integers(0, count, size=(draws, count))
    low, high = np.quantile(runs[picks].mean(axis=1), [level, 1 - level])
    return Estimate(value, (min(float(low), value), max(float(high), value)))


def bootstrap_over_seeds(
    model: Bool[ndarray, "seeds images"], reference: Bool[ndarray, "seeds images"] | None = None, seed: int = 0, draws: int = 2000
) -> Estimate:
    """Mean over seeds of an accuracy, or of the paired difference to a reference of the same seed, in percentage points.

    Images and seeds are resampled independently of each other (the pigeonhole bootstrap, Owen 2007), because one draw of images
    serves all seeds: its interval holds what other images and other seeds would change. Deviations of the drawn seeds are scaled
    by sqrt(n / (n - 1)), without which few seeds look too much alike. Percentiles 2.5 and 97.5. Same seed, same interval.
    Raises VitfrostError for no outcomes.
    """
    if model.size == 0:
        raise VitfrostError("no outcomes to average; measure at least one image with one seed")
    gains = model.astype(np.int8) - (np.zeros_like(model) if reference is None else reference).astype(np.int8)
    seeds, images = gains.shape
    value = 100 * float(gains.mean(dtype=np.float64))
    if images == 1:
        return Estimate(value, None)
    rng = np.random.default_rng(seed)
    kinds, counts = np.unique(gains, axis=1, return_counts=True)  # images that did the same under every seed are one kind
    by_seed = rng.multinomial(images, counts / images, size=draws) @ kinds.T.astype(np.float64) / images
    middle = by_seed.mean(axis=1)
    widened = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    picked = np.take_along_axis(by_seed, rng.integers(0, seeds, (draws, seeds)), axis=1).mean(axis=1)
    low, high = np.quantile(100 * (middle + widened * (picked - middle)), [0.025, 0.975])
    return Estimate(value, (min(float(low), value), max(float(high), value)))


def _log_softmax(logits: Float[ndarray, "images classes"]) -> Float[ndarray, "images classes"]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
