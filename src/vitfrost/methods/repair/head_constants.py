"""Dense constants of an attention's frozen heads, fitted to what the original's heads put out for the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...vit.attention import FusedAttention, MapAttention
from ...vit.stream import read_by
from ..constant_heads.module import ConstantHeads, HeadConstant
from .constants import MapCorrection, MapSums


class DenseConstants:
    """Those frozen heads of an attention whose maps are free numbers, and what they should put out: the outputs of the same heads in
    another attention `aim`. Heads of other kinds stay as they are."""

    def __init__(self, attention: MapAttention, aim: nn.Module):
        self.attention, self.aim = attention, aim
        self.constants: ConstantHeads = attention.constants
        self.dense = [place for place, head in enumerate(self.constants.constants()) if head.kind == "dense"]
        order = aim.order if isinstance(aim, MapAttention) else tuple(range(attention.site.heads))
        first = attention.moving_heads
        self.heads = [order.index(attention.order[first + place]) for place in self.dense]

    @classmethod
    def of(cls, attention: nn.Module, aim: nn.Module) -> DenseConstants | None:
        """None where no head has such a map: without frozen heads, in masked windows, where some numbers are zero, and where what the
        projection reads is normalized."""
        constants = getattr(attention, "constants", None)
        if not isinstance(constants, ConstantHeads) or constants.allowed is not None or not isinstance(attention, MapAttention):
            return None
        if isinstance(attention, FusedAttention) and not isinstance(attention.norm, nn.Identity):
            return None
        found = cls(attention, aim)
        return found if found.dense else None

    def add(self, sums: MapSums, run: Callable[[], Any], run_original: Callable[[], Any]) -> Float[Tensor, "rows heads queries width"]:
        """Add what the heads read and what is left of their aims, as both models are run; returns the aims."""
        with read_by(self.constants) as seen:
            run()
        with read_by(self.aim.get_submodule("proj")) as aimed:
            run_original()
        maps = self.constants.maps()[:, self.dense]
        values = seen[0][:, self.dense]
        tokens = self.attention.rows_read(aimed[0]).unflatten(-1, (-1, self.constants.head_dim))
        wanted = tokens.transpose(1, 2)[:, self.heads].to(values.device)
        rows, aims = (part.unflatten(0, (-1, len(maps))) for part in (values, wanted))
        sums.add(rows, aims - maps @ rows)
        return wanted

    @torch.no_grad()
    def take(self, fitted: MapCorrection) -> None:
        """Correct the maps."""
        for number, place in enumerate(self.dense):
            head: HeadConstant = self.constants.constants()[place]
            numbers = head.get_parameter("map")
            numbers.copy_(numbers + fitted.maps[:, number])
