"""A step's changes taken back block by block, where the model without them is nearer to the original on images held out."""

from __future__ import annotations

from torch import nn

from ..vit.families import forward_pass
from .quantize_chain import Chain, surely_less


def take_back_blocks(chain: Chain, before: nn.Module) -> list[str]:
    """Give `chain.model` the blocks of `before`, one after the other from the last, wherever that makes the divergence smaller for sure
    (paired over the images held out). Returns their names; both models have the same layers."""
    model = chain.model
    assert model is not None
    taken: list[str] = []
    lost = chain.divergences_of(model)
    for call in reversed(forward_pass(model).blocks):
        own = model.get_submodule(call.name)
        model.set_submodule(call.name, before.get_submodule(call.name))
        without = chain.divergences_of(model)
        if surely_less(without, lost):
            taken.append(call.name)
            lost = without
        else:
            model.set_submodule(call.name, own)
    return taken
