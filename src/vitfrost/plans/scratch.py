"""A plan without statistics, for a model that is going to be trained or only timed: heads are chosen by number or at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..model import ModelLike, as_model
from ..vit.families import find_sites
from .choose import unfrozen_plan
from .compact import compact_blocks
from .file import save_plan
from .freeze_heads import first_heads
from .hallucinate import hallucinated_layers
from .options import checked, compact_part, hallucinate_part
from .schema import Plan, QuantizePlan
from .structure import CompactPlan, ConstantsPlan, HallucinatePlan


def plan_from_model(
    model: ModelLike,
    *,
    hallucinate: float | Mapping[str, Any] | HallucinatePlan | None = None,
    compact: float | Mapping[str, Any] | CompactPlan | None = None,
    constants: Mapping[str, Any] | ConstantsPlan | None = None,
    weight_bits: int = 32,
    activation_bits: int = 32,
    levels: str = "published",
    out: str | Path | None = None,
) -> Plan:
    """The plan that hallucinates and compacts a model as the settings say, and freezes whole heads to uniform maps where `constants`
    (the fields of ConstantsPlan) ask for it: the first heads of every layer, or the first layers.

    `model`: its weights play no part (for training from scratch, `Model.open(name, weights="random")`). `hallucinate` and `compact` are as
    in `vitfrost.plan`, except that the first heads are computed unless the fields say how heads are chosen.
    Raises VitfrostError for heads chosen by medoids, which takes statistics, and for settings that do not fit the model.
    """
    if out is not None:
        refuse_unwritable(out)
    quantize = checked(QuantizePlan, {"weight_bits": weight_bits, "activation_bits": activation_bits, "levels": levels})
    heads = None if hallucinate is None else hallucinate_part(hallucinate, by="first")
    blocks = None if compact is None else compact_part(compact)
    loaded = as_model(model)
    sites = find_sites(loaded.module)
    made = unfrozen_plan(loaded.identity, sites.signature(), quantize)
    layers = made.layers if heads is None else hallucinated_layers(made.layers, heads, None, loaded.name)
    known = [site.signature() | {"block": site.block} for site in sites.feed_forward]
    whole = None
    if constants is not None:
        whole = constants if isinstance(constants, ConstantsPlan) else checked(ConstantsPlan, {"by": "first"} | dict(constants))
        if whole.by != "first" or whole.ratio is None:
            raise VitfrostError("without statistics the first heads are frozen; give a share of them, and statistics for any other choice")
        layers = tuple(first_heads(layers, whole, loaded.image_size))
    made = Plan(
        model=made.model, constants=whole, hallucinate=heads, compact=blocks, quantize=quantize, layers=tuple(layers),
        feed_forward=() if blocks is None else compact_blocks(known, blocks),
    )  # fmt: skip
    if out is not None:
        save_plan(made, out)
    return made
