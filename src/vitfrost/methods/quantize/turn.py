"""The rotation of the residual stream as a layer of its own, for models in which no weights can hold it.

In front of the first block a LayerNorm (CLIP's) writes to the stream, whose gains do not commute with a rotation; behind the last one
nothing linear may read it (a model of features). A turn behind the former and one back in front of the latter are all that is computed
beside what the model does: additions, and a sign and a place for every channel.

Shapes: B images, N tokens, C = S M channels, where a Hadamard matrix of order C is one of order M (rows of a small matrix of signs) for
each of S (a power of two).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .hadamard import factors, signs_of_stream


class Turn(nn.Module):
    """x -> z H^T / C with z_j = signs_j (x H)_places_j, H the Hadamard matrix of order C.

    A sign of 0 at the first place takes the mean of the channels away. `places` and `signs` are what a file holds of it; the rest
    follows from the width.
    """

    places: Tensor
    signs: Tensor
    small: Tensor
    doubled: Tensor

    def __init__(self, places: Int[Tensor, " channels"], signs: Float[Tensor, " channels"]):
        """Raises ValueError for a width without a Hadamard matrix, places that are no permutation, and signs that are none."""
        super().__init__()
        width = len(places)
        found = factors(width)
        if found is None:
            raise ValueError(f"no Hadamard matrix of order {width} is made here")
        if not torch.equal(places.long().sort().values, torch.arange(width)):
            raise ValueError(f"a turn of {width} channels has places that are no permutation of them")
        if not bool(((signs.abs() == 1) | (signs == 0)).all()):
            raise ValueError("a turn has signs other than 1, -1 and 0")
        self.register_buffer("places", places.int())
        self.register_buffer("signs", signs.float())
        self.register_buffer("small", found[0].float(), persistent=False)
        self.register_buffer("doubled", found[1].float(), persistent=False)

    @classmethod
    def of_stream(cls, width: int, seed: int, without_mean: bool) -> Turn:
        """The rotation that `rotation_of_stream` makes of this seed. Raises ValueError as the class."""
        places, signs = signs_of_stream(width, torch.Generator().manual_seed(seed))
        signs[0] = 0.0 if without_mean else 1.0
        return cls(places, signs)

    def back(self) -> Turn:
        """What undoes it, but for the mean of the channels where that is taken away."""
        places = self.places.argsort()
        return Turn(places.cpu(), self.signs[places].cpu()).to(self.signs)

    def forward(self, x: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """The turned stream; in float32 right to some 1e-6 of its norm."""
        x = self._spread(x, self.small)
        x = x.index_select(-1, self.places) * (self.signs / len(self.signs))
        return self._spread(x, self.small.T)

    def _spread(self, x: Tensor, small: Tensor) -> Tensor:
        """x H, or x H^T with the other small matrix (`doubled` is symmetric). In matrices: of more axes graphs copy the small ones."""
        inner, outer = len(small), len(self.doubled)
        made = (x.reshape(-1, inner) @ small).view(-1, outer, inner).transpose(1, 2)
        made = (made.reshape(-1, outer) @ self.doubled).view(-1, inner, outer).transpose(1, 2)
        return made.reshape(x.shape)


def turn_behind(norm: nn.Module, turn: Turn) -> nn.Sequential:
    """What stands in place of `norm` where the stream is turned behind it."""
    return nn.Sequential(norm, turn)


def turn_before(norm: nn.Module, turn: Turn) -> nn.Sequential:
    """What stands in place of `norm` where the stream is turned in front of it."""
    return nn.Sequential(turn, norm)


_BEHIND, _BEFORE = "norm_pre.1", "norm.0"  # the names of the turns in a plain ViT


def turned_places(model: nn.Module) -> list[str]:
    """The names of the norms beside which a model's stream is turned, in the order of data."""
    names = [name for name, module in model.named_modules() if isinstance(module, Turn)]
    return sorted((name.rpartition(".")[0] for name in names), key=["norm_pre", "norm"].index)


def restore_turns(model: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Put turns where the tensors of a saved model have them, in place. Raises ValueError for tensors that are none."""
    for name, place, beside in ((_BEHIND, "norm_pre", turn_behind), (_BEFORE, "norm", turn_before)):
        places, signs = (tensors.get(f"{name}.{part}") for part in ("places", "signs"))
        if places is None or signs is None or not isinstance(getattr(model, place, None), nn.Module):
            continue
        if places.shape != signs.shape or places.shape != (getattr(model, "embed_dim", None),) or places.dtype.kind != "i":
            raise ValueError(f"{name} is no turn of the model's width")
        setattr(model, place, beside(getattr(model, place), Turn(torch.from_numpy(places), torch.from_numpy(signs))))
