"""A hint where a classifier is worse than chance: its labels may be numbered otherwise than its outputs."""

from __future__ import annotations

from jaxtyping import Int
from numpy import ndarray

FEWEST = 10  # images; fewer say nothing
SHIFTED = 0.2  # share of predictions with the same offset from their labels


def label_hint(offsets: Int[ndarray, " images"], classes: int) -> str | None:
    """What may be wrong with the labels, None where nothing looks like it. `offsets`: predicted class less label, of every image.

    Labels are taken to be shifted where a fifth of the predictions has one and the same offset of 1 or -1, and three times as many as are
    right; to be in another order where fewer predictions are right than by chance.
    """
    images = len(offsets)
    if images < FEWEST or classes < 2:
        return None
    right = float((offsets == 0).mean())
    for step, text in ((-1, "one too high throughout; labels count from 0"), (1, "one too low throughout")):
        share = float((offsets == step).mean())
        if classes > 2 and share >= SHIFTED and share > 3 * right:
            return f"{share:.0%} of the predictions would be right if the labels were shifted by one: they may be {text}"
    if right < 1 / classes:
        return (
            f"{right:.2%} of the predictions are right, fewer than by chance ({1 / classes:.2%}): the labels may be shifted, or in another "
            "order than the model's classes"
        )
    return None
