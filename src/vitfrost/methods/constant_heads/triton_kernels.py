"""Frozen heads with local kernels on NVIDIA GPUs, in Triton, on the values where they lie.

This is the only module that imports triton; it is imported where a layer takes the form "triton" (see heads.ConstantHeads).

Two launches, both for inference only, without atomics and so with the same result every time:

1. `_sums`: of every piece of `PIECE` tokens, for each head, the sum of the patches' values and the sums weighted by the prefix tokens'
   rows. The rows of prefix tokens need the same values as the sum over patches, so they are made beside it; a matrix product of all
   heads would make F times as many sums as are wanted and, in bf16, cuBLAS may add its parts in bf16.
2. `_mix`: of every tile of patches of one head of one image, the window, the rest and the prefix columns in one pass; the first tile
   also adds up what the prefix tokens look at.

Everything is added in float32 and rounded once, when it is written. Both read and write tokens first, [images, tokens, heads x width], as
the projections before and after have them.

With TRITON_INTERPRET=1, set before triton is imported, the same kernels run on the CPU, slowly: that is what the tests do.

Shapes: B images, F frozen heads, T = P + N tokens (P prefix tokens, then the N patches of the grid), D head width, k the kernel.
"""

from __future__ import annotations

import os
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on", "yes", "y")
# Tokens of a piece, and how many of them are added at once; patches of a tile, down and along, and the warps that share them, of which
# the fastest on the device is found once per shape. The interpreter has small ones, so that small tests have several.
PIECE, ROWS = (16, 8) if INTERPRETED else (256, 32)
TILES = ((4, 8, 4),) if INTERPRETED else ((8, 8, 4), (4, 16, 4), (4, 8, 2), (16, 8, 8), (16, 16, 8))


@triton.jit
@no_type_check  # of the kernels' own language; the tests' type checker keeps off
def _sums(
    values, rows, sums, image_stride, token_stride, heads,
    TOKENS: tl.constexpr, PREFIX: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PIECE: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    piece, head, image = program % PIECES, (program // PIECES) % heads, (program // PIECES // heads).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    source = values + image * image_stride + head * WIDTH + channel[None, :]
    target = sums + ((image * heads + head) * PIECES + piece) * (1 + PREFIX) * WIDTH + channel
    for weight in tl.static_range(1 + PREFIX):
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, PIECE, ROWS):
            token = piece * PIECE + start + tl.arange(0, ROWS)
            inside = (token[:, None] < TOKENS) & (channel[None, :] < WIDTH)
            value = tl.load(source + token[:, None] * token_stride, mask=inside, other=0.0).to(tl.float32)
            if weight == 0:  # the patches alike
                share = tl.where(token >= PREFIX, 1.0, 0.0)
            else:
                row = rows + (head * PREFIX + weight - 1) * TOKENS
                share = tl.load(row + token, mask=token < TOKENS, other=0.0).to(tl.float32)
            total += tl.sum(share[:, None] * value, axis=0)
        tl.store(target + weight * WIDTH, total, mask=channel < WIDTH)


@no_type_check
def _mix(
    values, kernel, shared, scale, columns, sums, out, image_stride, token_stride, images, heads,
    GRID_HEIGHT: tl.constexpr, GRID_WIDTH: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    PREFIX: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
    TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    # `images` is here for the tuner: another number of programs may want another tile.
    across: tl.constexpr = (GRID_WIDTH + TILE_WIDTH - 1) // TILE_WIDTH
    tiles: tl.constexpr = across * ((GRID_HEIGHT + TILE_HEIGHT - 1) // TILE_HEIGHT)
    patches: tl.constexpr = GRID_HEIGHT * GRID_WIDTH
    program = tl.program_id(0)
    tile, head, image = program % tiles, (program // tiles) % heads, (program // tiles // heads).to(tl.int64)
    place = tl.arange(0, TILE_HEIGHT * TILE_WIDTH)
    row = (tile // across) * TILE_HEIGHT + place // TILE_WIDTH
    column = (tile % across) * TILE_WIDTH + place % TILE_WIDTH
    patch = row * GRID_WIDTH + column
    there = (row < GRID_HEIGHT) & (column < GRID_WIDTH)
    channel = tl.arange(0, BLOCK)
    wide = channel < WIDTH
    source = values + image * image_stride + head * WIDTH + channel

    # the window
    near = tl.zeros((TILE_HEIGHT * TILE_WIDTH, BLOCK), dtype=tl.float32)
    weights = kernel + head * KERNEL_HEIGHT * KERNEL_WIDTH
    for down in range(KERNEL_HEIGHT):
        key_row = row + down - KERNEL_HEIGHT // 2
        in_rows = there & (key_row >= 0) & (key_row < GRID_HEIGHT)
        first = PREFIX + key_row * GRID_WIDTH + column - KERNEL_WIDTH // 2
        line = source[None, :] + first[:, None] * token_stride
        for right in tl.range(0, KERNEL_WIDTH, loop_unroll_factor=4):
            key_column = column + (right - KERNEL_WIDTH // 2)
            inside = in_rows & (key_column >= 0) & (key_column < GRID_WIDTH)
            value = tl.load(line + right * token_stride, mask=inside[:, None] & wide[None, :], other=0.0)
            near += tl.load(weights + down * KERNEL_WIDTH + right).to(tl.float32) * value.to(tl.float32)

    # the rest and the prefix tokens
    pieces = sums + (image * heads + head) * PIECES * (1 + PREFIX) * WIDTH + channel
    everything = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in range(PIECES):
        everything += tl.load(pieces + piece * (1 + PREFIX) * WIDTH, mask=wide, other=0.0)
    of_query = head * patches + patch
    scaled = tl.load(scale + of_query, mask=there, other=0.0).to(tl.float32)
    rest = tl.load(shared + of_query, mask=there, other=0.0).to(tl.float32)
    mixed = scaled[:, None] * near + rest[:, None] * everything[None, :]
    for token in tl.static_range(PREFIX):
        share = tl.load(columns + of_query * PREFIX + token, mask=there, other=0.0).to(tl.float32)
        value = tl.load(source + token * token_stride, mask=wide, other=0.0).to(tl.float32)
        mixed += share[:, None] * value[None, :]

    target = out + (image * (PREFIX + patches) * heads + head) * WIDTH + channel
    written = target[None, :] + (PREFIX + patch)[:, None] * (heads * WIDTH)
    tl.store(written, mixed.to(out.dtype.element_ty), mask=there[:, None] & wide[None, :])
    if tile == 0:
        for token in tl.static_range(PREFIX):
            looking = tl.zeros((BLOCK,), dtype=tl.float32)
            for piece in range(PIECES):
                looking += tl.load(pieces + (piece * (1 + PREFIX) + 1 + token) * WIDTH, mask=wide, other=0.0)
            tl.store(target + token * (heads * WIDTH), looking.to(out.dtype.element_ty), mask=wide)


_KEY = ["images", "heads", "GRID_HEIGHT", "GRID_WIDTH", "KERNEL_HEIGHT", "KERNEL_WIDTH", "PREFIX", "WIDTH"]
_CONFIGS = [triton.Config({"TILE_HEIGHT": down, "TILE_WIDTH": along}, num_warps=warps) for down, along, warps in TILES]
_mix_jit = triton.jit(_mix)
_mix_tuned = triton.autotune(_CONFIGS, key=_KEY)(_mix_jit)


# A triton_op is taken apart by torch.compile, which then launches the kernels itself; the interpreter's kernels cannot be, so there the
# same function is an operator that nothing looks into.
@(custom_op if INTERPRETED else triton_op)("vitfrost::local_heads", mutates_args=())
@no_type_check
def _local_heads(
    values: torch.Tensor, kernel: torch.Tensor, shared: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor,
    height: int, width: int,
) -> torch.Tensor:  # fmt: skip
    values = values if values.stride(2) == 1 else values.contiguous()
    images, tokens, channels = values.shape
    heads, kernel_height, kernel_width = kernel.shape
    prefix, head_dim = rows.shape[1], channels // heads
    pieces, block = triton.cdiv(tokens, PIECE), triton.next_power_of_2(head_dim)
    sums = torch.empty(images, heads, pieces, 1 + prefix, head_dim, dtype=torch.float32, device=values.device)
    out = torch.empty(images, tokens, channels, dtype=values.dtype, device=values.device)
    wrap_triton(_sums)[(images * heads * pieces,)](
        values, rows, sums, values.stride(0), values.stride(1), heads,
        TOKENS=tokens, PREFIX=prefix, WIDTH=head_dim, BLOCK=block, PIECE=PIECE, ROWS=ROWS, PIECES=pieces,
    )  # fmt: skip

    def programs(meta: dict[str, Any]) -> tuple[int]:
        return (images * heads * triton.cdiv(height, meta["TILE_HEIGHT"]) * triton.cdiv(width, meta["TILE_WIDTH"]),)

    wrap_triton(_mix_tuned)[programs](
        values, kernel, shared, scale, columns, sums, out, values.stride(0), values.stride(1), images, heads,
        GRID_HEIGHT=height, GRID_WIDTH=width, KERNEL_HEIGHT=kernel_height, KERNEL_WIDTH=kernel_width,
        PREFIX=prefix, WIDTH=head_dim, BLOCK=block, PIECES=pieces,
    )  # fmt: skip
    return out


@_local_heads.register_fake
@no_type_check
def _(values, kernel, shared, scale, rows, columns, height, width):
    return values.new_empty(values.shape)


def local_heads(
    values: Float[Tensor, "images tokens channels"],
    kernel: Float[Tensor, "heads kernel_height kernel_width"],
    shared: Float[Tensor, "heads patches"],
    scale: Float[Tensor, "heads patches"],
    rows: Float[Tensor, "heads prefix tokens"],
    columns: Float[Tensor, "heads patches prefix"],
    grid: tuple[int, int],
) -> Float[Tensor, "images tokens channels"]:
    """Outputs of frozen heads: a patch n of head f takes scale[f, n] times the sum of kernel[f] over its window of the patch `grid` of
    height and width `grid`, shared[f, n] times the sum of all patches, and columns[f, n] of the prefix tokens; prefix token p takes
    rows[f, p] of all tokens.

    `values` are tokens first, float32, bfloat16 or float16; kernels have odd sides and are less their rest. All but the values must be
    contiguous. No gradients.
    """
    made: Tensor = _local_heads(values, kernel, shared, scale, rows, columns, *grid)
    return made
