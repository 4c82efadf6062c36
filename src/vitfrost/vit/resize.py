"""Weights of one resolution or window size carried over to a model built for another."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from . import plain, swin
from .compat import import_timm
from .position_grid import grid_of_positions

import_timm()
from timm.layers import resample_abs_pos_embed  # noqa: E402  (timm must be imported through the guard)
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table  # noqa: E402

log = logging.getLogger("vitfrost")


def fit_state(model: Any, state: dict[str, torch.Tensor], grid: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    """Interpolate position embeddings (ViT) and relative bias tables (Swin) to the model's own sizes.

    `grid`: patches (height, width) of the embeddings that are given, where that is known; else they tell it (`grid_of_positions`).
    What is done is logged. Nothing else is touched: every other misfit is for the strict loading that follows to name.
    """
    state = dict(state)
    if plain.matches(model):
        own, given = model.pos_embed, state.get("pos_embed")
        if own is not None and given is not None and given.ndim == 3 and len(given) == 1 and given.shape[2] == own.shape[2]:
            state["pos_embed"] = _fit_positions(model, given, grid)
    elif swin.matches(model):
        resized: list[str] = []
        for name, module in model.named_modules():
            key = f"{name}.relative_position_bias_table"
            if isinstance(module, swin.WindowAttention) and key in state and state[key].shape != module.relative_position_bias_table.shape:
                resized.append(name)
                state[key] = resize_rel_pos_bias_table(
                    state[key], new_window_size=module.window_size, new_bias_shape=module.relative_position_bias_table.shape
                )
        if resized:
            log.info("relative position biases of %d layers are resized to other windows, the first of %s", len(resized), resized[0])
        # Older files carry buffers that timm computes itself today.
        for key in [key for key in state if key.endswith(("relative_position_index", "attn_mask"))]:
            del state[key]
    return state


def _fit_positions(model: Any, given: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Position embeddings [1, tokens, channels] for the model's grid; as they are where their own grid is not known."""
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    target: tuple[int, int] = tuple(model.patch_embed.grid_size)
    patches = given.shape[1] - prefix
    same = patches == target[0] * target[1]
    if patches < 1:
        return given
    if grid is None:
        grid = grid_of_positions(given[0, prefix:], target if same else None)
    if grid is None or grid == target or grid[0] * grid[1] != patches:
        return given
    log.info("position embeddings of %d x %d patches are resized to %d x %d", *grid, *target)
    return resample_abs_pos_embed(given, target, old_size=grid, num_prefix_tokens=prefix)  # type: ignore[no-any-return]
