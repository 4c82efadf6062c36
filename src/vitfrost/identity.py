"""Which model statistics, plans and artifacts are of."""

from __future__ import annotations

from .strict import Count, Positive, Strict


class Identity(Strict):
    """Name, image size (height and width in pixels), where the weights came from, their SHA-256, and the number of classes."""

    name: str
    image_size: tuple[Positive, Positive]
    weight_tag: str
    state_hash: str
    classes: Count
