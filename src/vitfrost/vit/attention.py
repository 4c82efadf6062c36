"""The run-time attention: every head's map is computed, frozen or hallucinated.

Shapes: B images, W windows per image, rows = B W, H heads, g heads with queries and keys, F heads with constant maps, N queries,
M keys, D head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from .by_head import HeadObserver, attend_by_head
from .grid_seen import GridSeen, layer_at
from .head_rows import head_channels, with_rows
from .sites import AttentionSite

MapObserver = Callable[[Tensor, Tensor], None]
LogitObserver = Callable[[Tensor], None]
Projections = tuple[Tensor | None, Tensor | None, Tensor]


class Observers(NamedTuple):
    """Who sees what an attention layer computes.

    `maps` is called with maps and values after the softmax, or, if `quantized`, after the map quantizer and frozen entries. `logits` is
    called with the logits [rows, H, N, M] of a layer that has them for all heads. `heads` takes the place of `maps` where maps are long:
    it is called once per image and head of the original, in their order, with the head, its maps [W, N, M] and values [W, M, D]; only one
    head's maps of one image are there at a time.
    """

    maps: MapObserver | None = None
    logits: LogitObserver | None = None
    quantized: bool = False
    heads: HeadObserver | None = None

    @property
    def any(self) -> bool:
        """Whether there is an observer."""
        return self.maps is not None or self.logits is not None or self.heads is not None


class MapAttention(nn.Module):
    """Multi-head self-attention whose maps can be observed, quantized, frozen and hallucinated.

    Takes over the layers of a timm attention module under their own names, so state dicts keep their keys. A subclass per family
    projects tokens to queries, keys and values. Heads whose map nobody needs run through fused attention; the others get an
    explicit map.

    `order[place]` is the head of the original at a place of this module: as they are, until `keep_logits` puts the heads
    without queries and keys behind the others. Observers see the maps in the original's order.

    What happens to the maps is set by methods, and is None where nothing does: `hallucination` by `hallucinate`, modules of heads whose
    values are mixed apart (`constants`) by `mix_apart`, `frozen` by `freeze_entries`, the four quantizers by `quantize`, `observers` by
    `observe`. `seen` knows the patch grid of the image, in models that take images of any size.
    """

    scale_queries_first = False
    proj: Any

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__()
        self.training = original.training  # or an attention in evaluation would drop what it drops in training
        self.site = site
        self.scale = site.head_dim**-0.5
        self.order: tuple[int, ...] = tuple(range(site.heads))
        self.logit_heads = site.heads
        self.proj = original.proj
        self.attn_drop: Any = getattr(original, "attn_drop", nn.Identity())
        self.proj_drop: Any = getattr(original, "proj_drop", nn.Identity())
        self.query_quantizer: nn.Module | None = None
        self.key_quantizer: nn.Module | None = None
        self.value_quantizer: nn.Module | None = None
        self.map_quantizer: nn.Module | None = None
        self.hallucination: nn.Module | None = None
        self.constants: Any = None
        self.apart: tuple[tuple[str, int], ...] = ()
        self.windowed: Any = None
        self.windowed_heads = 0
        self.frozen: Any = None
        self.observers = Observers()
        self.seen: GridSeen | None = None

    @abstractmethod
    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        """Take the rows of the projections to queries and keys of `order[:logit_heads]`, of that to values in `order`, in place."""

    def keep_logits(self, order: Sequence[int], logit_heads: int) -> None:
        """Leave queries and keys to the first `logit_heads` heads of `order` only; the function of every head stays the same.

        Done once, before anything is quantized. `hallucinate` and `mix_apart` say what makes the other heads' maps.
        """
        if sorted(order) != list(range(self.site.heads)) or not 0 <= logit_heads <= self.site.heads:
            raise ValueError(f"{logit_heads} heads of the order {list(order)} do not fit {self.site.heads} heads")
        self.split_heads(order, logit_heads)
        columns = head_channels(order, self.site.head_dim, self.proj.weight.device)
        self.proj.weight = nn.Parameter(self.proj.weight.detach()[:, columns])
        self.order, self.logit_heads = tuple(order), logit_heads

    def hallucinate(self, hallucination: nn.Module) -> None:
        """Make maps [rows, H - F, N, M] of the logits [rows, g, N, M] by a module (see methods.hallucination.maps)."""
        self.hallucination = hallucination

    def mix_apart(self, name: str, module: nn.Module, heads: int) -> None:
        """Make the outputs [rows, F, N, D] of the next F `heads` of `order`, behind those with logits or maps made of them, from their
        values [rows, F, M, D] alone by a module, which is called `name` here. Its `maps()` are [1 or windows, F, N, M]."""
        setattr(self, name, module)
        self.apart = (*self.apart, (name, heads))

    def look_near(self, windowed: nn.Module, heads: int) -> None:
        """Let the last `heads` of those with logits look at a window only, by a module (see methods.windowed_heads)."""
        self.windowed, self.windowed_heads = windowed, heads

    def freeze_entries(self, frozen: Any) -> None:
        """Merge constants into the maps, heads in this module's order (see methods.frozen_entries); None: no longer."""
        if frozen is not None and tuple(frozen.mask.shape) != self.site.maps_shape:
            raise ValueError(f"frozen entries of maps {tuple(frozen.mask.shape)} do not fit {self.site.name} with {self.site.maps_shape}")
        self.frozen = frozen

    def quantize(self, make_quantizer: Callable[[], nn.Module], make_map_quantizer: Callable[[], nn.Module | None]) -> None:
        """Quantize values, and where there are logits queries, keys ([rows, heads, tokens, D] each) and the softmax's maps too (None: these
        stay in floating point)."""
        self.value_quantizer = make_quantizer()
        if self.logit_heads:
            self.query_quantizer, self.key_quantizer, self.map_quantizer = make_quantizer(), make_quantizer(), make_map_quantizer()

    def observe(
        self,
        maps: MapObserver | None = None,
        logits: LogitObserver | None = None,
        quantized: bool = False,
        heads: HeadObserver | None = None,
    ) -> None:
        """Show maps and logits to these observers from now on, instead of those before; without any, to nobody (see Observers)."""
        self.observers = Observers(maps, logits, quantized, heads)

    def map_sources(self) -> dict[str, nn.Module]:
        """What makes the maps of heads that are not computed as in the original, by its name here."""
        made = {} if self.hallucination is None else {"hallucination": self.hallucination}
        near = {} if self.windowed is None else {"windowed": self.windowed}
        return made | near | {name: getattr(self, name) for name, _ in self.apart}

    @property
    def has_relative_bias(self) -> bool:
        """Whether every head adds a learned bias of its own to its logits."""
        return False

    @property
    def moving_heads(self) -> int:
        """How many heads have maps that depend on the image; the others, whose values are mixed apart, stand behind them."""
        return self.site.heads - sum(count for _, count in self.apart)

    def in_original_order(self, heads: Shaped[Tensor, "rows heads *rest"]) -> Shaped[Tensor, "rows heads *rest"]:
        """What belongs to this module's places, by heads of the original."""
        if self.order == tuple(range(self.site.heads)):
            return heads
        places = [self.order.index(head) for head in range(self.site.heads)]
        return heads[:, places]

    def _show(self, maps: Tensor, values: Tensor) -> None:
        """Show maps (of heads that are mixed apart as well) and values to their observer, in the original's order."""
        if self.observers.maps is not None:
            for name, _ in self.apart:
                made = getattr(self, name).maps()
                maps = torch.cat([maps, made.repeat(len(values) // len(made), 1, 1, 1)], dim=1)
            self.observers.maps(self.in_original_order(maps), self.in_original_order(values))

    def logits_to_maps(self, logits: Float[Tensor, "rows logit_heads queries keys"]) -> Float[Tensor, "rows heads queries keys"]:
        """Softmax (equation 11 of EAM), of hallucinated logits as well."""
        if self.hallucination is not None:
            maps: Tensor = self.hallucination(logits)
            return maps
        return torch.softmax(logits, dim=-1)

    def maps_of(self, heads: list[int] | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows used q k"]:
        """Maps of the heads at the places `heads` (None: all that depend on the image), then observer (with the values `v` of all
        heads), quantizer and frozen entries, in this order."""
        maps = self.plain_maps(heads, q, k, bias)
        if not self.observers.quantized:
            self._show(maps, v)
        maps = self.merged(maps, heads)
        if self.observers.quantized:
            self._show(maps, v)
        return self.attn_drop(maps)

    def plain_maps(self, heads: list[int] | None, q: Tensor, k: Tensor, bias: Tensor | None) -> Float[Tensor, "rows used q k"]:
        """Maps of the heads at these places as the softmax makes them."""
        if heads is not None:
            q, k = q[:, heads], k[:, heads]
            bias = bias[:, heads] if bias is not None and bias.shape[1] > 1 else bias
        logits = q @ k.transpose(-2, -1)
        logits = logits if bias is None else logits + bias
        if self.observers.logits is not None:
            self.observers.logits(logits)
        return self.logits_to_maps(logits) if self.windowed is None else self._near_maps(logits, heads)

    def _near_maps(self, logits: Tensor, heads: list[int] | None) -> Float[Tensor, "rows used q k"]:
        """Whole maps of the heads at these places, some of which look at a window only."""
        first = self.logit_heads - self.windowed_heads
        places = list(range(self.logit_heads)) if heads is None else heads
        each = [
            self.windowed.maps(part, [place - first]) if place >= first else self.logits_to_maps(part)
            for place, part in zip(places, logits.split(1, dim=1), strict=True)
        ]
        return torch.cat(each, dim=1)

    def merged(self, maps: Float[Tensor, "rows used q k"], heads: list[int] | None) -> Float[Tensor, "rows used q k"]:
        """The maps of the heads at these places, quantized and with frozen entries, where there are such."""
        if self.frozen is not None:
            made: Tensor = self.frozen(maps, self.map_quantizer, heads)
            return made
        return maps if self.map_quantizer is None else self.map_quantizer(maps, *(() if heads is None else (heads,)))

    def attend(self, q: Tensor | None, k: Tensor | None, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows heads queries width"]:
        """Mix the values: of heads that are mixed apart by their modules, of the others with their own maps."""
        if self.observers.heads is not None:
            return attend_by_head(self, q, k, v, bias, self.observers.heads)
        if not self.apart:
            assert q is not None
            assert k is not None
            return self.attend_moving(q, k, v, bias)
        still = v[:, self.moving_heads :]
        parts = (still,) if len(self.apart) == 1 else still.split([count for _, count in self.apart], dim=1)
        outputs = [getattr(self, name)(values) for (name, _), values in zip(self.apart, parts, strict=True)]
        if q is None or k is None:
            if self.observers.maps is not None:
                self._show(v.new_empty(len(v), 0, outputs[0].shape[2], v.shape[2]), v)
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return torch.cat([self.attend_moving(q, k, v, bias), *outputs], dim=1)

    def attend_moving(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows heads queries width"]:
        """Mix the values of heads whose maps depend on the image; `v` has those of all heads. Maps are explicit only where something
        needs them: heads that are neither observed, quantized, frozen nor mixed go through fused attention."""
        values, v = v, v[:, : self.moving_heads]
        quantized, watched = self.map_quantizer is not None, self.observers.any
        if self.hallucination is not None:
            return self.maps_of(None, q, k, values, bias) @ v
        if self.windowed is not None and self.frozen is None and not quantized and not watched:
            whole = self.moving_heads - self.windowed_heads
            near: Tensor = self.windowed(q[:, whole:], k[:, whole:], v[:, whole:])
            if not whole:
                return near
            return torch.cat([F.scaled_dot_product_attention(q[:, :whole], k[:, :whole], v[:, :whole], scale=1.0), near], dim=1)
        if self.frozen is None and not quantized and not watched:
            dropped = self.attn_drop.p if self.training and isinstance(self.attn_drop, nn.Dropout) else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropped, scale=1.0)
        if self.frozen is None or watched:
            return self.maps_of(None, q, k, values, bias) @ v
        constant, fused = self.frozen.constant_heads, [] if quantized else self.frozen.other_heads
        explicit = sorted(self.frozen.partial_heads + (self.frozen.other_heads if quantized else []))
        if len(explicit) == self.site.heads:
            return self.maps_of(None, q, k, values, bias) @ v
        out = v.new_empty(*v.shape[:2], q.shape[2], v.shape[3])
        if fused:
            bias_fused = bias[:, fused] if bias is not None and bias.shape[1] > 1 else bias
            out[:, fused] = F.scaled_dot_product_attention(q[:, fused], k[:, fused], v[:, fused], attn_mask=bias_fused, scale=1.0)
        if explicit:
            out[:, explicit] = self.maps_of(explicit, q, k, values, bias) @ v[:, explicit]
        if constant:
            maps = self.frozen.constant_maps(self.map_quantizer)
            windows = v[:, constant].reshape(-1, maps.shape[0], len(constant), *v.shape[2:])
            out[:, constant] = (maps @ windows).reshape(v.shape[0], len(constant), *out.shape[2:])
        return out

    def mixed(self, q: Tensor | None, k: Tensor | None, v: Tensor, bias: Tensor | None = None) -> Float[Tensor, "rows queries channels"]:
        """Quantize and scale queries, keys and values, attend, and put the heads side by side. Queries and keys are None where no head
        has any."""
        fixed = self.apart or self.frozen is not None or self.windowed is not None
        if fixed or (self.hallucination is not None and self.seen is not None):
            grid = self.site.grid if self.seen is None else self.seen.grid_of(v.shape[2] - self.site.prefix_tokens, self.site.grid)
            if grid != self.site.grid or v.shape[2] != self.site.keys:
                return MapAttention.mixed(layer_at(self, grid, v.shape[2]), q, k, v, bias)
        if q is not None and self.scale_queries_first:
            q = self.scaled(q)
        if q is not None and self.query_quantizer is not None:
            q = self.query_quantizer(q)
        if k is not None and self.key_quantizer is not None:
            k = self.key_quantizer(k)
        if self.value_quantizer is not None:
            v = self.value_quantizer(v)
        if q is not None and not self.scale_queries_first:
            q = self.scaled(q)
        attended = self.attend(q, k, v, bias)
        if torch.compiler.is_exporting():  # a fused operator that is taken apart later leaves heads in another order of memory
            attended = attended.clone(memory_format=torch.contiguous_format)
        return attended.transpose(1, 2).flatten(2)

    def rows_read(self, read: Tensor) -> Float[Tensor, "rows queries channels"]:
        """What `proj` reads, here or in the original, by rows of the maps."""
        return read.flatten(1, -2)

    def scaled(self, q: Float[Tensor, "rows heads queries width"]) -> Float[Tensor, "rows heads queries width"]:
        """Queries in the units of logits."""
        return q * self.scale

    def heads_of(self, x: Float[Tensor, "rows tokens channels"]) -> Float[Tensor, "rows heads tokens width"]:
        """Channels cut into heads."""
        return x.unflatten(-1, (-1, self.site.head_dim)).transpose(1, 2)


class FusedAttention(MapAttention):
    """Queries, keys and values from one layer `qkv`: timm's Attention (plain ViTs) and WindowAttention (Swin)."""

    relative_position_bias_table: nn.Parameter | None
    relative_position_index: Tensor
    qkv: Any

    def __init__(self, original: Any, site: AttentionSite, scale_queries_first: bool):
        super().__init__(original, site)
        self.scale_queries_first = scale_queries_first
        self.qkv = original.qkv
        self.q_norm = getattr(original, "q_norm", nn.Identity())
        self.k_norm = getattr(original, "k_norm", nn.Identity())
        self.norm = getattr(original, "norm", nn.Identity())
        if hasattr(original, "relative_position_bias_table"):
            self.relative_position_bias_table = original.relative_position_bias_table
            self.register_buffer("relative_position_index", original.relative_position_index, persistent=False)
        else:
            self.relative_position_bias_table = None

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        inner = self.site.heads * self.site.head_dim
        channels = head_channels(order, self.site.head_dim, self.qkv.weight.device)
        kept = channels[: logit_heads * self.site.head_dim]
        self.qkv = with_rows(self.qkv, torch.cat([kept, kept + inner, channels + 2 * inner]))
        for name, parameter in list(self.norm.named_parameters(recurse=False)):  # of the heads side by side, before `proj`
            setattr(self.norm, name, nn.Parameter(parameter.detach()[channels], parameter.requires_grad))
        table = self.relative_position_bias_table
        if table is not None:
            chosen = nn.Parameter(table.detach()[:, list(order[:logit_heads])], table.requires_grad)
            self.relative_position_bias_table = chosen if logit_heads else None

    @property
    def has_relative_bias(self) -> bool:
        return self.relative_position_bias_table is not None

    def relative_bias(self) -> Float[Tensor, "1 heads queries keys"] | None:
        """Learned bias of Swin's windows, gathered per pair; None for global attention."""
        if self.relative_position_bias_table is None:
            return None
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(*[self.site.queries] * 2, -1)
        return bias.permute(2, 0, 1).unsqueeze(0)

    def logit_bias(self, rows: int, mask: Tensor | None) -> Tensor | None:
        """Relative bias plus shift mask [W, N, M], broadcastable to [rows, H, N, M]; None where there is neither."""
        return masked_bias(self.relative_bias(), mask, rows)

    def project(self, x: Float[Tensor, "rows queries channels"]) -> Projections:
        """Queries and keys [rows, g, N, D] (None where g is 0), values [rows, H, N, D]."""
        rows, tokens, _ = x.shape
        if self.logit_heads == self.site.heads:
            qkv = self.qkv(x).reshape(rows, tokens, 3, self.site.heads, self.site.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        elif not self.logit_heads:
            return None, None, self.heads_of(self.qkv(x))
        else:
            cut = self.logit_heads * self.site.head_dim
            q, k, v = (self.heads_of(part) for part in self.qkv(x).tensor_split([cut, 2 * cut], dim=-1))
        return self.q_norm(q), self.k_norm(k), v

    def forward(
        self,
        x: Float[Tensor, "rows queries channels"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "rows queries channels"]:
        """Same signature as timm's Attention (`attn_mask`, `is_causal`) and WindowAttention (`mask`)."""
        if attn_mask is not None or is_causal:
            raise ValueError("vitfrost's attention has no caller-given mask; it sees the whole image")
        x = self.mixed(*self.project(x), self.logit_bias(x.shape[0], mask) if self.logit_heads else None)
        return self.proj_drop(self.proj(self.norm(x)))


def masked_bias(bias: Tensor | None, mask: Tensor | None, rows: int) -> Tensor | None:
    """A bias of logits [1, H, N, M] and a mask of windows [W, N, M] for `rows` windows, broadcastable to [rows, H, N, M]."""
    if mask is None:
        return bias
    mask = mask.view(1, len(mask), 1, *mask.shape[1:]).expand(rows // len(mask), -1, -1, -1, -1)
    mask = mask.reshape(rows, 1, *mask.shape[3:])
    return mask if bias is None else bias + mask
