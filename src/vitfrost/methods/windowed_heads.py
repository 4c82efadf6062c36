"""Windowed heads: real attention, but between patches only within a window of the patch grid; prefix tokens see and are seen by all.

A patch's map is the softmax over the prefix tokens and the patches around it. What it would give to the patches outside can stay as a
constant share, spread evenly over all patches: (1 - m) of the output comes from the window, m is the mean of the patches' values.

Queries go in blocks of the grid; each block gathers the keys of its window once. Shapes: B images, F heads, N tokens, P prefix tokens,
D head width, n blocks of b queries with k keys each.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from .constant_heads.constants import Shape, stretched_window
from .constant_heads.elsewhere import Elsewhere

BLOCK = 4  # patches, a side


class WindowedHeads(nn.Module):
    """The heads of a layer that look at a window, `window` patches wide and high, around every patch.

    `outside` [F] is the share m of every head, 0 where the window has all the mass. `forward` makes outputs of scaled queries, keys and
    values; `maps` the whole maps of whole logits.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor
    back: Tensor

    def __init__(self, shape: Shape, heads: int, window: int, outside: Float[Tensor, " heads"] | None = None):
        super().__init__()
        self.shape, self.window = shape, window
        self.outside = nn.Parameter(torch.zeros(heads) if outside is None else outside.float())
        queries, keys, seen = blocks_of(shape, window)
        back = torch.empty(shape.patches, dtype=torch.long)
        inside = queries >= 0
        back[queries[inside] - shape.prefix_tokens] = torch.arange(queries.numel())[inside.flatten()]
        for name, part in (("queries", queries.clamp(min=0)), ("keys", keys.clamp(min=0)), ("seen", seen), ("back", back)):
            self.register_buffer(name, part, persistent=False)
        self._elsewhere: Elsewhere[WindowedHeads] = Elsewhere()

    def at(self, grid: tuple[int, int]) -> WindowedHeads:
        """The heads on another patch grid, their windows grown as the grid has; those of the last few grids are kept."""
        return self._elsewhere.get(grid, (id(self.outside), self.queries.device), lambda: self._carried(grid))

    def _carried(self, grid: tuple[int, int]) -> WindowedHeads:
        shape = Shape(grid, self.shape.prefix_tokens)
        made = WindowedHeads(shape, len(self.outside), stretched_window(self.window, self.shape, shape)).to(self.outside.device)
        made.outside = self.outside
        return made.eval()

    def forward(
        self, q: Float[Tensor, "images heads tokens width"], k: Float[Tensor, "images heads tokens width"],
        v: Float[Tensor, "images heads tokens width"],
    ) -> Float[Tensor, "images heads tokens width"]:  # fmt: skip
        """Outputs of the heads; the queries are scaled already."""
        prefix, heads = self.shape.prefix_tokens, q.shape[1]
        own, near, values = self._gathered(q, self.queries), self._gathered(k, self.keys), self._gathered(v, self.keys)
        if torch.compiler.is_exporting():
            mixed = self._one_by_one(own, near, values)
        else:
            mixed = F.scaled_dot_product_attention(own, near, values, attn_mask=self.seen.repeat(heads, 1, 1), scale=1.0)
        patches = mixed.unflatten(1, (heads, -1)).flatten(2, 3)[:, :, self.back]
        share = self.outside[:, None, None]
        patches = (1 - share) * patches + share * v[:, :, prefix:].mean(2, keepdim=True)
        if not prefix:
            return patches
        first = F.scaled_dot_product_attention(q[:, :, :prefix], k, v, scale=1.0)
        return torch.cat([first, patches], dim=2)

    def _gathered(self, tokens: Tensor, places: Tensor) -> Float[Tensor, "images blocks_of_heads places width"]:
        return tokens[:, :, places.flatten()].unflatten(2, tuple(places.shape)).flatten(1, 2)

    def _one_by_one(self, own: Tensor, near: Tensor, values: Tensor) -> Float[Tensor, "images blocks_of_heads b width"]:
        """The same attention, the block of every head an image of its own: OpenVINO merges axes of heads and blocks, but not the mask's."""
        images, blocks = own.shape[:2]
        q, k, v = (part.flatten(0, 1).unsqueeze(1) for part in (own, near, values))
        seen = self.seen.repeat(images * blocks // len(self.seen), 1, 1).unsqueeze(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0).squeeze(1).unflatten(0, (images, blocks))

    def maps(
        self, logits: Float[Tensor, "images some tokens tokens"], heads: list[int] | None = None
    ) -> Float[Tensor, "images some tokens tokens"]:
        """The whole maps of some of the heads (None: all), of all their logits."""
        prefix = self.shape.prefix_tokens
        found = logits.masked_fill(~window_mask(self.shape, self.window).to(logits.device), float("-inf")).softmax(-1)
        share = (self.outside if heads is None else self.outside[heads])[:, None, None]
        patches = (1 - share) * found[:, :, prefix:]
        patches = torch.cat([patches[..., :prefix], patches[..., prefix:] + share / self.shape.patches], dim=-1)
        return torch.cat([found[:, :, :prefix], patches], dim=2)


def blocks_of(shape: Shape, window: int) -> tuple[Tensor, Tensor, Bool[Tensor, "blocks queries keys"]]:
    """Tokens of the queries [n, b] and keys [n, k] of every block, -1 for places off the grid; and which pairs see each other."""
    prefix, (height, width), half = shape.prefix_tokens, shape.grid, window // 2
    down, right = torch.arange(0, height, BLOCK), torch.arange(0, width, BLOCK)

    def places(first: int, side: int) -> tuple[Tensor, Tensor]:
        steps = torch.arange(first, first + side)
        rows = (down[:, None, None, None] + steps[:, None]).expand(-1, len(right), -1, side)
        columns = (right[None, :, None, None] + steps).expand(len(down), -1, side, -1)
        return rows.reshape(-1, side * side), columns.reshape(-1, side * side)

    rows, columns = places(0, BLOCK)
    key_rows, key_columns = places(-half, BLOCK + 2 * half)
    used = (key_rows >= 0) & (key_rows < height) & (key_columns >= 0) & (key_columns < width)
    queries = torch.where((rows < height) & (columns < width), rows * width + columns + prefix, -1)
    keys = torch.where(used, key_rows * width + key_columns + prefix, -1)
    near = (rows[:, :, None] - key_rows[:, None]).abs().maximum((columns[:, :, None] - key_columns[:, None]).abs()) <= half
    seen = near & used[:, None]
    seen = seen | ((queries < 0)[:, :, None] & used[:, None])  # or a row without keys would have no softmax
    first = torch.arange(prefix).expand(len(keys), -1)
    return queries, torch.cat([first, keys], dim=1), torch.cat([seen.new_ones(*seen.shape[:2], prefix), seen], dim=2)


def window_mask(shape: Shape, window: int) -> Bool[Tensor, "tokens tokens"]:
    """Which tokens a token sees: all where one of them is a prefix token, else those in its window."""
    prefix, width = shape.prefix_tokens, shape.grid[1]
    places = torch.arange(shape.patches)
    rows, columns = places // width, places % width
    near = (rows[:, None] - rows).abs().maximum((columns[:, None] - columns).abs()) <= window // 2
    mask = torch.ones(shape.tokens, shape.tokens, dtype=torch.bool)
    mask[prefix:, prefix:] = near
    return mask


def windowed_macs(shape: Shape, head_dim: int, window: int) -> int:
    """Multiply-accumulates of one head as it is executed: logits and mixing of whole blocks, and of the prefix tokens' rows."""
    blocks = -(-shape.grid[0] // BLOCK) * -(-shape.grid[1] // BLOCK)
    keys = shape.prefix_tokens + (BLOCK + 2 * (window // 2)) ** 2
    return 2 * head_dim * (blocks * BLOCK * BLOCK * keys + shape.prefix_tokens * shape.tokens)
