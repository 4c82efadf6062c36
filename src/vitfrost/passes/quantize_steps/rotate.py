"""The step that rotates the model before it is quantized."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ...methods.quantize.rotate import can_rotate, rotate
from ...methods.quantize.turn import turned_places
from ..quantize_chain import Chain
from ..work import Record
from .ranges import IMAGES


@dataclass(frozen=True)
class Rotate:
    """LayerNorms are folded into the layers behind them; the residual stream, queries with keys, and values are turned (see
    methods.quantize.rotate).

    Models that cannot be rotated, such as Swin, stay as they are. The record names the norms beside which the stream is turned by a
    layer of its own.
    """

    name = "rotation"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Rotate the model with float weights and the original, and quantize anew."""
        if not can_rotate(chain.float_model, chain.sites) or not can_rotate(chain.teacher, chain.teacher_sites):
            return {"rotated": False}
        chain.float_model, chain.teacher = copy.deepcopy(chain.float_model), copy.deepcopy(chain.teacher)  # it may be taken back
        rotate(chain.float_model, chain.sites, chain.seed)
        rotate(chain.teacher, chain.teacher_sites, chain.seed)
        turned = turned_places(chain.float_model)
        return {"rotated": True} | ({"turned": turned} if turned else {}) | chain.quantize(IMAGES)
