"""Weights of one resolution or window size carried over to a model built for another."""

from __future__ import annotations

import logging
from typing import Any

import torch

from . import plain, swin
from .compat import import_timm

import_timm()
from timm.layers import resample_abs_pos_embed  # noqa: E402  (timm must be imported through the guard)
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table  # noqa: E402

log = logging.getLogger("vitfrost")


def fit_state(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Interpolate position embeddings (ViT) and relative bias tables (Swin) to the model's own sizes.

    Nothing else is touched: every other misfit is for the strict loading that follows to name.
    """
    state = dict(state)
    if plain.matches(model):
        own, given = model.pos_embed, state.get("pos_embed")
        if own is not None and given is not None and given.ndim == 3 and given.shape[1] != own.shape[1] and given.shape[2] == own.shape[2]:
            prefix = 0 if model.no_embed_class else model.num_prefix_tokens
            side = int((given.shape[1] - prefix) ** 0.5)
            if side * side == given.shape[1] - prefix:
                log.info("position embeddings of %d x %d patches are resized to %d x %d", side, side, *model.patch_embed.grid_size)
                state["pos_embed"] = resample_abs_pos_embed(given, model.patch_embed.grid_size, num_prefix_tokens=prefix)
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
