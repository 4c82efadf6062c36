"""Ranges of queries, keys, values and maps of one attention layer per head, by the error at what the heads put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...configs.mixed import MOST_BASE_BITS
from ...vit.attention import MapAttention
from .modules import LogQuantizer, UniformMapQuantizer, UniformQuantizer, quantize_heads
from .quantizers import Levels
from .search import integer_parameters, search_range, search_step

# From so many bits on, maps get the grid with the smaller error: the log-sqrt2 grid becomes no finer with bits, it reaches further down.
LEAST_UNIFORM_MAP_BITS = 6
OCTAVES = (2.0, 4 / 3, 1.0)  # levels to a factor of two: sqrt2 first
PARTS = ("query_quantizer", "key_quantizer", "map_quantizer", "value_quantizer")


@contextmanager
def mixed_by(attention: MapAttention) -> Iterator[list[Any]]:
    """A list that holds the queries, keys, values and the bias of logits that the layer mixed last."""
    seen: list[Any] = []

    def keep(q: Any, k: Any, v: Any, bias: Any = None) -> Tensor:
        seen[:] = [q, k, v, bias]
        return MapAttention.mixed(attention, q, k, v, bias)

    attention.mixed = keep  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del attention.mixed


@contextmanager
def made_once(attention: MapAttention, method: Literal["plain_maps", "maps_of"]) -> Iterator[None]:
    """Let a method of the layer give again what it gave for the same heads, while only what comes behind it changes."""
    make, known = getattr(attention, method), {}

    def again(heads: list[int] | None, *others: Tensor | None) -> Tensor:
        places = None if heads is None else tuple(heads)
        if places not in known:
            known[places] = make(heads, *others)
        return known[places].clone()  # frozen entries are written into maps

    setattr(attention, method, again)
    try:
        yield
    finally:
        delattr(attention, method)


@torch.no_grad()
def quantize_attention(
    attention: MapAttention, bits: Sequence[int], levels: Levels, run: Callable[[], Any], any_base: bool = False
) -> None:
    """Give the layer quantizers, a range for each head, fitted to the images that `run` runs through it without any quantizer. `bits`: of
    the heads in its order. `any_base`: the base of a log grid of maps is searched, too.

    Queries come first, then keys, maps and values, each with those before it quantized.
    """
    with mixed_by(attention) as seen:
        run()
    q, k, v, bias = seen
    search = _RangeSearch(attention, q, k, v, bias)
    quantize_heads(attention, bits, levels)
    made = {part: getattr(attention, part) for part in PARTS}
    for part in PARTS:
        setattr(attention, part, None)
    for part, values in zip(PARTS, (q, k, None, v), strict=True):
        quantizer: nn.Module | None = made[part]
        if quantizer is None:
            continue
        setattr(attention, part, quantizer)
        if isinstance(quantizer, LogQuantizer):
            with made_once(attention, "plain_maps"):
                search.log_maps(quantizer, any_base)
                if quantizer.bits >= LEAST_UNIFORM_MAP_BITS:
                    search.uniform_maps(UniformMapQuantizer.like(quantizer))
        elif isinstance(quantizer, UniformQuantizer) and values is not None:
            with made_once(attention, "maps_of") if part == "value_quantizer" else nullcontext():
                search.uniform(quantizer, values)


class _RangeSearch:
    """What the heads put out without quantizers, and the error of what they put out with them."""

    def __init__(self, attention: MapAttention, q: Tensor | None, k: Tensor | None, v: Tensor, bias: Tensor | None):
        self.attention, self.inputs = attention, (q, k, v, bias)
        self.wanted = self._heads()

    def _heads(self) -> Tensor:
        return self.attention.mixed(*self.inputs).unflatten(-1, (self.attention.site.heads, -1))

    def _error(self, heads: int) -> Tensor:
        """Squared error of the first `heads` heads, [heads, 1, 1]; where heads are mixed, that of all together for each."""
        lost = (self._heads() - self.wanted).square().mean(dim=(0, 1, 3))
        if self.attention.hallucination is not None and heads < len(lost):
            return lost.sum().expand(heads).reshape(-1, 1, 1)
        return lost[:heads].reshape(-1, 1, 1)

    def uniform(self, quantizer: UniformQuantizer, values: Tensor) -> None:
        """Set scale and zero point for each head of `values` [rows, heads, tokens, width]."""
        heads = values.shape[1]

        def error(low: Tensor, high: Tensor) -> Tensor:
            quantizer.scale, quantizer.zero_point = integer_parameters(low, high, quantizer.depth)
            return self._error(heads)

        ends = (values.amin(dim=(0, 2, 3)).reshape(-1, 1, 1), values.amax(dim=(0, 2, 3)).reshape(-1, 1, 1))
        quantizer.scale, quantizer.zero_point = integer_parameters(*search_range(*ends, error, rounds=1), quantizer.depth)

    def uniform_maps(self, quantizer: UniformMapQuantizer) -> None:
        """Put maps on a uniform grid from zero on, if that leaves a smaller error than the quantizer that they have, and none larger at a
        head with few bits."""
        former, heads = self.attention.map_quantizer, self.attention.moving_heads
        wanted, few = self._error(heads), torch.as_tensor(quantizer.depth < LEAST_UNIFORM_MAP_BITS).expand(heads, 1, 1)
        self.attention.map_quantizer = quantizer
        self.uniform(quantizer, torch.tensor([0.0, 1.0]).expand(1, heads, 1, 2))
        made = self._error(heads)
        if float(made.sum()) >= float(wanted.sum()) or bool((made > wanted)[few].any()):
            self.attention.map_quantizer = former

    def log_maps(self, quantizer: LogQuantizer, any_base: bool) -> None:
        """Set the step of each head's map, and with `any_base` up to 4 bits the base of its grid (AdaLog, arXiv 2407.12951): few levels on
        the log-sqrt2 grid leave out what is far below the largest weight."""
        heads = self.attention.moving_heads
        few = torch.as_tensor(quantizer.depth <= MOST_BASE_BITS).expand(heads, 1, 1)

        def error(step: Tensor) -> Tensor:
            quantizer.step = step
            return self._error(heads)

        if not any_base or not bool(few.any()):
            quantizer.step = search_step(error, heads)[0]
            return
        best = torch.full((heads, 1, 1), torch.inf)
        steps, octaves = torch.ones(heads, 1, 1), torch.full((heads, 1, 1), OCTAVES[0])
        for octave in OCTAVES:
            quantizer.octave = torch.where(few, octave, OCTAVES[0])
            step, lost = search_step(error, heads)
            better = lost < best
            best, steps = torch.where(better, lost, best), torch.where(better, step, steps)
            octaves = torch.where(better, quantizer.octave, octaves)
        quantizer.step, quantizer.octave = steps, octaves
