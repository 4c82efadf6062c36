"""The same function with less work: what graphs for inference are made of.

A model as PyTorch has it computes the last block for every patch though the head may read one token, cuts queries, keys and values
out of one product, and embeds patches by a convolution. Nothing of that is needed where the graph is only ever run.

Shapes: B images, N tokens, T tokens that the head reads, g heads with queries and keys, F heads with constant maps, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from . import plain
from .attention import FusedAttention
from .compat import import_timm
from .families import install_map_attention
from .head_rows import head_channels, with_rows

import_timm()
from timm.layers import PatchEmbed  # noqa: E402  (timm must be imported through the guard)


def make_lean(model: nn.Module) -> nn.Module:
    """Rebuild a plain ViT in place; other families, and parts that are not understood, stay as they are. Returns the model.

    The outputs stay the same up to rounding (float32: 1e-5).
    """
    if not plain.matches(model):
        return model
    vit: Any = model
    for name, module in install_map_attention(model).items():
        if isinstance(module, FusedAttention) and _is_bare(module):
            model.set_submodule(name, SeparateAttention(module))
    read = tokens_read(vit)
    if read is not None:
        vit.blocks[-1] = LastBlock(vit.blocks[-1], read)
    if cuts_patches(vit.patch_embed):
        vit.patch_embed = PatchProduct(vit.patch_embed)
    return model


def is_lean(model: nn.Module) -> bool:
    """Whether `make_lean` found something to rebuild."""
    return any(isinstance(module, SeparateAttention | LastBlock | PatchProduct) for module in model.modules())


def tokens_read(vit: Any) -> int | None:
    """How many of the first tokens the classifier reads; None where it reads them all, or norms stand behind layers."""
    if not all(isinstance(block, plain.Block) for block in vit.blocks):
        return None
    if isinstance(vit, plain.VisionTransformerDistilled):
        return 2
    return 1 if vit.global_pool == "token" and vit.attn_pool is None else None


def block_cut_short(model: nn.Module) -> str | None:
    """The name of the block that a lean graph computes for some tokens only, so that changes save less there; None if there is none."""
    if not plain.matches(model) or tokens_read(model) is None:
        return None
    vit: Any = model
    return f"blocks.{len(vit.blocks) - 1}"


def cuts_patches(embedding: Any) -> bool:
    """Whether patches are embedded by a convolution that reads every pixel once, into a list of tokens."""
    if type(embedding) is not PatchEmbed or not embedding.flatten or embedding.img_size is None:
        return False
    layer = embedding.proj
    if not isinstance(layer, nn.Conv2d):
        return False
    whole = all(side % patch == 0 for side, patch in zip(embedding.img_size, layer.kernel_size, strict=True))
    plain_layer = tuple(layer.stride) == tuple(layer.kernel_size) and tuple(layer.padding) == (0, 0) and layer.groups == 1
    return whole and plain_layer and tuple(layer.dilation) == (1, 1)


def _is_bare(module: FusedAttention) -> bool:
    """Whether nothing but constant heads was done to an attention layer, and its maps have no learned bias."""
    changed = (
        module.query_quantizer, module.key_quantizer, module.value_quantizer, module.map_quantizer, module.hallucination, module.frozen,
        module.windowed,
    )  # fmt: skip
    unchanged = all(part is None for part in changed) and not module.observers.any and isinstance(module.qkv, nn.Linear)
    bare = unchanged and all(name == "constants" for name, _ in module.apart)
    return bare and not module.has_relative_bias and module.logit_heads == module.moving_heads


class SeparateAttention(nn.Module):
    """Attention with a layer of its own for queries, for keys, for values of moving heads, and for values of heads with constant maps.

    Heads are cut and put together again around each operation, so that runtimes find fused attention over [B, N, g D] as they know it.
    """

    first_maps: Tensor | None

    def __init__(self, attention: FusedAttention):
        super().__init__()
        self.width, self.moving, logits = attention.site.head_dim, attention.moving_heads, attention.logit_heads
        rows = head_channels(range(2 * logits + attention.site.heads), self.width, attention.qkv.weight.device)
        q, k, v, still = rows.split([n * self.width for n in (logits, logits, self.moving, attention.site.heads - self.moving)])
        self.q, self.k, self.v, self.still = (with_rows(attention.qkv, part) if len(part) else None for part in (q, k, v, still))
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm
        self.scale, self.constants, self.proj = attention.scale, attention.constants, attention.proj
        self.queries: int | None = None
        self.register_buffer("first_maps", None, persistent=False)

    def ask_for(self, queries: int) -> None:
        """Attend for the first `queries` tokens only."""
        self.queries = queries
        if self.constants is not None:
            self.first_maps = self.constants.maps().detach()[:, :, :queries].clone()

    def forward(self, x: Float[Tensor, "batch tokens channels"], *_: Any, **__: Any) -> Float[Tensor, "batch queries channels"]:
        """What timm's Attention gives, for the tokens that were asked for."""
        asking = x if self.queries is None else x[:, : self.queries]
        parts = []
        if self.q is not None and self.k is not None and self.v is not None:
            q, k = self.q_norm(self._heads(self.q(asking))), self.k_norm(self._heads(self.k(x)))
            parts.append(F.scaled_dot_product_attention(q, k, self._heads(self.v(x)), scale=self.scale))
        if self.still is not None:
            values = self._heads(self.still(x))
            parts.append(self.constants(values) if self.first_maps is None else self.first_maps @ values)
        tokens = [self._tokens(part) for part in parts]
        mixed: Tensor = self.proj(self.norm(torch.cat(tokens, dim=-1) if len(tokens) > 1 else tokens[0]))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)

    def _tokens(self, heads: Tensor) -> Tensor:
        # A fused operator that is taken apart later leaves heads in another order of memory.
        return heads.clone(memory_format=torch.contiguous_format).transpose(1, 2).flatten(2)


class LastBlock(nn.Module):
    """A transformer block for the first `read` tokens: keys and values are of all tokens, everything else only of those."""

    def __init__(self, block: Any, read: int):
        super().__init__()
        self.read = read
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        if isinstance(self.attn, SeparateAttention):
            self.attn.ask_for(read)

    def forward(self, x: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch read channels"]:
        """The block's output at the tokens that are read."""
        x, mixed = x[:, : self.read], self.attn(self.norm1(x))
        x = x + self.ls1(mixed[:, : self.read])
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchProduct(nn.Module):
    """A patch embedding as one product with the pixels of every patch side by side."""

    def __init__(self, embedding: Any):
        super().__init__()
        convolution = embedding.proj
        self.norm, self.patch, self.image_size = embedding.norm, tuple(convolution.kernel_size), tuple(embedding.img_size)
        self.layer = nn.Linear(convolution.weight[0].numel(), convolution.out_channels, convolution.bias is not None)
        self.layer.weight = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)
        self.layer.bias = convolution.bias

    def forward(self, pixels: Float[Tensor, "batch colors height width"]) -> Float[Tensor, "batch patches channels"]:
        """Tokens row by row."""
        (rows, columns), (height, width) = (s // p for s, p in zip(self.image_size, self.patch, strict=True)), self.patch
        cut = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        return self.norm(self.layer(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)))
