"""Computed maps: the softmax of a head's own logits, as in the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .source import MapSource

if TYPE_CHECKING:
    from ..plans.heads import HeadPlan


class Computed(MapSource):
    """The head is left alone."""

    name = "computed"

    def keeps_logits(self, head: HeadPlan) -> bool:
        return True
