"""What embeddings are for: nearest neighbors, and classes by prototypes and by neighbors. Formulas only.

Shapes: n images, m images of a gallery, C channels. Vectors are rows of length one; likeness is their cosine. Without a gallery the images
are each other's, and none is its own neighbor or part of its own prototype (leave one out).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

ROWS = 1024  # of cosines that are held at a time
TEMPERATURE = 0.07


def unit_rows(vectors: Float[ndarray, "images channels"]) -> Float[ndarray, "images channels"]:
    """Rows of length one, in float32; a row of zeros stays one."""
    wide = vectors.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def nearest(
    queries: Float[ndarray, "images channels"], gallery: Float[ndarray, "others channels"] | None = None
) -> Int[ndarray, " images"]:
    """The number of the image of the gallery that is nearest to every query; of equal ones the first. A lone image is its own neighbor."""
    found = [cosines.argmax(axis=1) for _, cosines in _cosines(queries, gallery)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def by_prototype(
    queries: Float[ndarray, "images channels"],
    labels: Int[ndarray, " labeled"],
    gallery: Float[ndarray, "labeled channels"] | None = None,
) -> Int[ndarray, " images"]:
    """The class whose prototype, the mean of its images' vectors, is nearest to every query (Snell et al. 2017, with cosines).

    `labels`: of the gallery, or without one of the queries.
    """
    alone, vectors = gallery is None, queries if gallery is None else gallery
    names, places = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(names), queries.shape[1]))
    np.add.at(sums, places, vectors.astype(np.float64))
    scores = queries @ unit_rows(sums).T
    if alone:
        rows = np.arange(len(queries))
        without = sums[places] - queries
        own = (unit_rows(without) * queries).sum(axis=1)
        scores[rows, places] = np.where(np.bincount(places)[places] > 1, own, -np.inf)
    found: ndarray = names[scores.argmax(axis=1)]
    return found


def by_neighbors(
    queries: Float[ndarray, "images channels"],
    labels: Int[ndarray, " labeled"],
    count: int,
    gallery: Float[ndarray, "labeled channels"] | None = None,
) -> Int[ndarray, " images"]:
    """The class that the `count` nearest images of the gallery vote for, each with exp(cosine / 0.07) (Wu et al. 2018, equation 7).

    `labels`: of the gallery, or without one of the queries.
    """
    names, places = np.unique(labels, return_inverse=True)
    found = []
    for _, cosines in _cosines(queries, gallery):
        most = min(count, cosines.shape[1])
        chosen = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
        votes = np.exp((np.take_along_axis(cosines, chosen, axis=1).astype(np.float64) - 1) / TEMPERATURE)
        scores = np.zeros((len(cosines), len(names)))
        np.add.at(scores, (np.arange(len(cosines))[:, None], places[chosen]), votes)
        found.append(names[scores.argmax(axis=1)])
    return np.concatenate(found)


def has_company(labels: Int[ndarray, " images"], gallery_labels: Int[ndarray, " others"] | None = None) -> Bool[ndarray, " images"]:
    """Whether there is another image of the same class, so that the image can be told at all."""
    if gallery_labels is not None:
        return np.isin(labels, gallery_labels)
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    alone: ndarray = counts[places] > 1
    return alone


def _cosines(queries: ndarray, gallery: ndarray | None) -> Iterator[tuple[int, Float[ndarray, "rows others"]]]:
    """Some rows at a time, with the number of the first; an image's cosine with itself is minus infinity."""
    others = queries if gallery is None else gallery
    for start in range(0, len(queries), ROWS):
        cosines = queries[start : start + ROWS] @ others.T
        if gallery is None:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
        yield start, cosines
