"""Dense constants of an attention's frozen heads, fitted to what the original's heads put out for the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...vit.attention import FusedAttention, MapAttention
from ...vit.stream import read_by
from ..constant_heads.module import ConstantHeads
from .constants import MapCorrection, ValueSums


class DenseConstants:
    """The frozen heads of an attention, whose maps are free numbers, and what they should put out: the outputs of the same heads in
    another attention `aim`."""

    def __init__(self, attention: MapAttention, aim: nn.Module):
        self.attention, self.aim = attention, aim
        self.constants: ConstantHeads = attention.constants
        order = aim.order if isinstance(aim, MapAttention) else tuple(range(attention.site.heads))
        first = attention.moving_heads
        self.heads = [order.index(head) for head in attention.order[first : first + len(self.constants.heads)]]

    @classmethod
    def of(cls, attention: nn.Module, aim: nn.Module) -> DenseConstants | None:
        """None where they cannot be fitted: without frozen heads, where one of them has a map of another kind, in masked windows, where
        some numbers are zero, and where what the projection reads is normalized."""
        constants = getattr(attention, "constants", None)
        if not isinstance(constants, ConstantHeads) or constants.allowed is not None or not isinstance(attention, MapAttention):
            return None
        if isinstance(attention, FusedAttention) and not isinstance(attention.norm, nn.Identity):
            return None
        return cls(attention, aim) if all(head.kind == "dense" for head in constants.constants()) else None

    def add(self, sums: ValueSums, run: Callable[[], Any], run_original: Callable[[], Any]) -> Float[Tensor, "rows heads queries width"]:
        """Add what the heads read and what is left of their aims, as both models are run; returns the aims."""
        with read_by(self.constants) as seen:
            run()
        with read_by(self.aim.get_submodule("proj")) as aimed:
            run_original()
        maps, values = self.constants.maps(), seen[0]
        tokens = self.attention.rows_read(aimed[0]).unflatten(-1, (-1, self.constants.head_dim))
        wanted = tokens.transpose(1, 2)[:, self.heads].to(values.device)
        rows, aims = (part.unflatten(0, (-1, len(maps))) for part in (values, wanted))
        sums.add(rows, aims - maps @ rows)
        return wanted

    @torch.no_grad()
    def take(self, fitted: MapCorrection) -> None:
        """Correct the maps."""
        for place, head in enumerate(self.constants.constants()):
            numbers = head.get_parameter("map")
            numbers.copy_(numbers + fitted.maps[:, place])
