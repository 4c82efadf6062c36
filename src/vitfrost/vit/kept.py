"""Layers that stay as they are, whatever is done to the model; they count in the costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .sites import LinearSite
from .skeleton import without_memory


def kept_layers(model: Any, root: str, tokens: int) -> tuple[LinearSite, ...]:
    """The convolutions before the patch embedding of a hybrid model, and the attention that pools the tokens."""
    kept: list[LinearSite] = []
    backbone = getattr(model.patch_embed, "backbone", None)
    if backbone is not None:
        kept += convolutions(backbone, f"{root}patch_embed.backbone.", tuple(model.patch_embed.img_size))
    pool = getattr(model, "attn_pool", None)
    if pool is not None:
        layers = [name for name, layer in pool.named_modules() if isinstance(layer, nn.Linear)]
        kept += [LinearSite(f"{root}attn_pool.{name}", "head", tokens if name == "kv" else 1) for name in layers]
    return tuple(kept)


@torch.no_grad()
def convolutions(module: nn.Module, root: str, image_size: tuple[int, int]) -> tuple[LinearSite, ...]:
    """A module's convolutions and how many positions each puts out, from a pass that computes shapes only. `root`: its name, with a dot."""
    twin, pixels = without_memory(module).eval(), torch.empty(1, 3, *image_size, device="meta")
    found: list[LinearSite] = []

    def count(path: str, output: torch.Tensor) -> None:
        found.append(LinearSite(f"{root}{path}", "convolution", output.shape[-2] * output.shape[-1]))

    for path, layer in twin.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output, path=path: count(path, output))
    twin(pixels)
    return tuple(found)
