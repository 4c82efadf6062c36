"""How alike a model's heads are: twins, closest pairs, and what the other heads of a layer explain. Formulas only.

Shapes: T heads of the model, layer after layer; h heads of one layer. `layers` [T] numbers the layer of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..methods.hallucination.fit import HeadChoice, correlations, fit_mix
from ..passes.quality import explained


@dataclass(frozen=True)
class Twins:
    """How many heads have another one above a cosine: in their own layer, and anywhere in the model."""

    above: float
    own_layer: int
    anywhere: int


@dataclass(frozen=True)
class Pair:
    """Two heads, by their places among all heads of the model, and the cosine between them."""

    first: int
    second: int
    cosine: float


def cosines_of(moments: Float[np.ndarray, "heads heads"]) -> Float[np.ndarray, "heads heads"]:
    """Cosines between row-centered logits in [-1, 1] from their second moments, NaN where two heads cannot be compared."""
    found = correlations(torch.from_numpy(np.nan_to_num(moments))).numpy()
    return np.asarray(np.where(np.isnan(moments), np.nan, found))


def count_twins(cosines: Float[np.ndarray, "heads heads"], layers: Int[np.ndarray, " heads"], above: float) -> Twins:
    """Heads whose cosine with at least one other head is higher than `above`; those of NaN are no twins."""
    alike = np.nan_to_num(cosines, nan=-np.inf) > above
    np.fill_diagonal(alike, False)
    same = layers[:, None] == layers[None]
    return Twins(above, int((alike & same).any(axis=1).sum()), int(alike.any(axis=1).sum()))


def closest_pairs(cosines: Float[np.ndarray, "heads heads"], layers: Int[np.ndarray, " heads"], count: int, across: bool) -> list[Pair]:
    """The `count` pairs of highest cosine, highest first: of heads of different layers (`across`), or of one layer."""
    first, second = np.triu_indices(len(cosines), 1)
    values = cosines[first, second]
    wanted = ((layers[first] != layers[second]) == across) & ~np.isnan(values)
    first, second, values = first[wanted], second[wanted], values[wanted]
    order = np.argsort(-values, kind="stable")[:count]
    return [Pair(int(first[at]), int(second[at]), float(values[at])) for at in order]


def explained_by_others(moments: Float[np.ndarray, "heads heads"], ridge: float) -> list[float | None]:
    """Share of each head's row-centered logit energy that the best mix of all other heads of its layer leaves explained.

    Ridge regression in closed form (`hallucination.fit.fit_mix`), from the second moments of the layer's heads; None for a head
    that has no others.
    """
    known = torch.from_numpy(np.ascontiguousarray(moments))
    heads = len(known)
    if heads == 1:
        return [None]
    shares: list[float | None] = []
    for head in range(heads):
        choice = HeadChoice(tuple(other for other in range(heads) if other != head), (0,))
        shares += explained(known, choice, fit_mix(known, choice, ridge))
    return shares
