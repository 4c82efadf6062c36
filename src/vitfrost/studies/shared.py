"""One model that is many variants in turn: what two variants have in common is computed once per batch.

Variants of a grid differ in their frozen maps only. Up to the first attention layer in which two of them differ, all their
activations are equal, so the residual stream into the block of that layer is kept for the batch and used again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..methods.frozen_entries import FrozenMaps
from ..vit.families import install_map_attention
from ..vit.stream import ResidualStream

COMPUTED = ""
Prefix = tuple[str, ...]


class SharedModel:
    """A model whose variants take turns. Use as a context; after it the model is as it was before.

    `add` gives a module per variant, which takes pixels like the model itself. All of them may be run on a batch in any order;
    a new batch drops what was kept of the one before. Outputs are the same bits as those of separate models. `computed` and `reused`
    count the blocks that ran and those that did not have to.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._attention = install_map_attention(model)
        self._stream = ResidualStream(model)
        # The stream that depends on the first n attention layers is kept where the next one reads it: before its block, or at the end.
        self._ends = [*(self._stream.block_of(name) for name in self._attention), len(self._stream.blocks)]
        self._before = {name: module.frozen for name, module in self._attention.items()}
        self._wanted: Counter[Prefix] = Counter()
        self._kept: dict[Prefix, Tensor] = {}
        self._pixels: Tensor | None = None
        self.computed = 0
        self.reused = 0

    def __enter__(self) -> SharedModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for name, module in self._attention.items():
            module.freeze_entries(self._before[name])
        self._kept, self._pixels = {}, None

    def add(self, frozen: Mapping[str, FrozenMaps]) -> VariantModel:
        """A variant with these frozen maps by site, the others computed."""
        variant = VariantModel(self, {site: frozen.get(site) for site in self._attention})
        self._wanted.update(variant.prefix[:depth] for depth in range(len(variant.prefix) + 1))
        return variant

    def become(self, variant: VariantModel) -> None:
        """Put the variant's frozen maps in place."""
        for site, frozen in variant.frozen_by_site.items():
            self._attention[site].freeze_entries(frozen)

    def run(self, variant: VariantModel, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        """The variant's logits."""
        if self._pixels is None or self._pixels.shape != pixels.shape or not torch.equal(self._pixels, pixels):
            self._kept, self._pixels = {}, pixels
        self.become(variant)
        prefix, start, stream, place = variant.prefix, 0, None, 0
        for depth in range(len(self._ends)):
            if prefix[:depth] in self._kept:
                start, stream, place = depth, self._kept[prefix[:depth]], self._ends[depth]
        self.reused += place
        self.computed += len(self._stream.blocks) - place
        stream = self._stream.enter(pixels) if stream is None else stream
        for depth in range(start, len(self._ends)):
            stream, place = self._stream.run(stream, place, self._ends[depth]), self._ends[depth]
            if self._is_shared(prefix[:depth], prefix[: depth + 1]):
                self._kept[prefix[:depth]] = stream
        return self._stream.leave(stream)

    def _is_shared(self, prefix: Prefix, longer: Prefix) -> bool:
        """Whether variants with equal frozen maps up to `prefix` differ in the layer after it (or are equal to the end)."""
        return self._wanted[prefix] > (1 if prefix == longer else self._wanted[longer])


class VariantModel(nn.Module):
    """One variant of a SharedModel, run like a model of its own."""

    def __init__(self, shared: SharedModel, frozen: Mapping[str, FrozenMaps | None]):
        super().__init__()
        self.frozen_by_site = dict(frozen)  # no submodules: they are in place only while the variant runs
        self.prefix: Prefix = tuple(COMPUTED if maps is None else _fingerprint(maps) for maps in frozen.values())
        self._shared = shared
        self.model = shared.model

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        return self._shared.run(self, pixels)

    def select(self) -> None:
        """Be this variant, for those who look at the model's modules."""
        self._shared.become(self)


class Remembered(nn.Module):
    """A model that is asked about the same batches again and again, and computes each once."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._answers: dict[bytes, Tensor] = {}

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        key = hashlib.blake2b(pixels.cpu().contiguous().numpy().data).digest()
        if key not in self._answers:
            self._answers[key] = self.model(pixels)
        return self._answers[key]


def _fingerprint(frozen: FrozenMaps) -> str:
    digest = hashlib.blake2b(f"{frozen.renormalize}|{frozen.order}".encode())
    for tensor in (frozen.mask, frozen.constants):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
