"""One model that is many variants in turn: what two variants have in common is computed once per batch.

Variants of a grid differ in their frozen maps only. Up to the first attention layer in which two of them differ, all their
activations are equal, so the outputs of those layers are kept for the batch and used again.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..methods.frozen_entries import FrozenMaps
from ..vit.families import install_map_attention

COMPUTED = ""
# Of plain ViTs, Swin and PVT v2; of PVT v1; of Next-ViT. Every family keeps its blocks in lists of this name: `blocks`.
FIRST_LAYERS = ("patch_embed", "stages.0.patch_embed", "stem")
PROJECTIONS = ("qkv", "q", "sr", "k", "v", "kv")
Prefix = tuple[str, ...]


class SharedModel:
    """A model whose variants take turns. Use as a context; after it the model is as it was before.

    `add` gives a module per variant, which takes pixels like the model itself. All of them may be run on a batch in any order;
    a new batch drops what was kept of the one before. Outputs are the same bits as those of separate models.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._attention = install_map_attention(model)
        self._before = {name: module.frozen for name, module in self._attention.items()}
        self._wanted: Counter[Prefix] = Counter()
        self._kept: dict[tuple[str, Prefix], Any] = {}
        self._prefix: Prefix = ()
        self._pixels: Tensor | None = None
        self._wrapped: list[nn.Module] = []
        self.computed = 0
        self.reused = 0

    def __enter__(self) -> SharedModel:
        for name, depth in self._places():
            module = self.model.get_submodule(name)
            module.forward = functools.partial(self._through, name, depth, module.forward)  # type: ignore[method-assign]
            self._wrapped.append(module)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for module in self._wrapped:
            del module.forward
        self._wrapped = []
        for name, module in self._attention.items():
            module.frozen = self._before[name]
        self._kept, self._pixels = {}, None

    def _places(self) -> list[tuple[str, int]]:
        """Modules whose output may be shared, with the number of attention layers that it depends on: what makes the first tokens,
        whole blocks (also those without attention), and what an attention layer projects before its maps."""
        modules = dict(self.model.named_modules())
        places = [(name, 0) for name in FIRST_LAYERS if name in modules]
        depth = 0
        for block in (name for name in modules if name.split(".")[-2:-1] == ["blocks"]):
            for site in (site for site in self._attention if site.startswith(f"{block}.")):
                places += [(f"{site}.{name}", depth) for name in PROJECTIONS if f"{site}.{name}" in modules]
                depth += 1
            places.append((block, depth))
        return places

    def add(self, frozen: Mapping[str, FrozenMaps]) -> VariantModel:
        """A variant with these frozen maps by site, the others computed."""
        variant = VariantModel(self, {site: frozen.get(site) for site in self._attention})
        self._wanted.update(variant.prefix[:depth] for depth in range(len(variant.prefix) + 1))
        return variant

    def become(self, variant: VariantModel) -> None:
        """Put the variant's frozen maps in place."""
        for site, frozen in variant.frozen_by_site.items():
            self._attention[site].frozen = frozen
        self._prefix = variant.prefix

    def run(self, variant: VariantModel, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        """The variant's logits."""
        if self._pixels is None or self._pixels.shape != pixels.shape or not torch.equal(self._pixels, pixels):
            self._kept, self._pixels = {}, pixels
        self.become(variant)
        logits: Tensor = self.model(pixels)
        return logits

    def _through(self, name: str, depth: int, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Run a module, or take its output from a variant that agrees with the current one up to there."""
        prefix = self._prefix[:depth]
        if (name, prefix) in self._kept:
            self.reused += 1
            return self._kept[name, prefix]
        output = forward(*inputs, **options)
        self.computed += 1
        if self._wanted[prefix] > 1:
            self._kept[name, prefix] = output
        return output


class VariantModel(nn.Module):
    """One variant of a SharedModel, run like a model of its own."""

    def __init__(self, shared: SharedModel, frozen: Mapping[str, FrozenMaps | None]):
        super().__init__()
        self.frozen_by_site = dict(frozen)  # no submodules: they are in place only while the variant runs
        self.prefix: Prefix = tuple(COMPUTED if maps is None else _fingerprint(maps) for maps in frozen.values())
        self._shared = [shared]
        self.model = shared.model

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        return self._shared[0].run(self, pixels)

    def select(self) -> None:
        """Be this variant, for those who look at the model's modules."""
        self._shared[0].become(self)


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
