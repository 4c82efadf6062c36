"""Weights of one resolution or window size carried over to a model built for another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..errors import VitfrostError
from . import eva, maxvit, plain, relative, swin, tiny_vit
from .classifier import classifier_of
from .compat import import_timm
from .grids import Grid
from .kinds import is_kind
from .position_grid import grid_of_positions

import_timm()
from timm.layers import resample_abs_pos_embed  # noqa: E402  (timm must be imported through the guard)
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table, resize_rel_pos_bias_table_levit  # noqa: E402

log = logging.getLogger("vitfrost")


def windows_of(model: Any) -> dict[str, tuple[int, int]]:
    """The windows (height, width) that tables of relative positions were made for, by the names of their modules."""
    return {name: tuple(module.window_size) for name, module in model.named_modules() if hasattr(module, "relative_position_bias_table")}


def fit_state(
    model: Any, state: dict[str, torch.Tensor], grid: Grid | None = None, windows: Mapping[str, Grid] | None = None
) -> dict[str, torch.Tensor]:
    """Interpolate position embeddings and relative bias tables (Swin, BEiT, CoAtNet) to the model's own sizes.

    `grid`: patches (height, width) of the embeddings that are given, where that is known; else they tell it (`grid_of_positions`).
    `windows`: the same for tables (see `windows_of`), which are taken for those of squares else. A head without bias, as CLIP's projection
    is, gets one of zeros. What is done is logged. Nothing else is touched: every other misfit is for the strict loading that follows to
    name. Raises VitfrostError for a table of another size whose window is not known and no square.
    """
    state = dict(state)
    if plain.matches(model) or eva.matches(model) or relative.matches(model):
        own, given = getattr(model, "pos_embed", None), state.get("pos_embed")
        if own is not None and given is not None and given.ndim == 3 and len(given) == 1 and given.shape[2] == own.shape[2]:
            state["pos_embed"] = _fit_positions(model, given, grid)
    if swin.matches(model) or relative.matches(model) or tiny_vit.matches(model) or is_kind(model, *maxvit.KINDS):
        _fit_tables(model, state, windows or {})
    if swin.matches(model) or tiny_vit.matches(model):
        # Older files carry buffers that timm computes itself today.
        for key in [key for key in state if key.endswith(("relative_position_index", "attn_mask", "attention_bias_idxs"))]:
            del state[key]
    _add_bias(model, state)
    return state


def _fit_tables(model: Any, state: dict[str, torch.Tensor], windows: Mapping[str, Grid]) -> None:
    """Tables of relative positions, whose windows may be of another size."""
    resized: list[str] = []
    for name, module in model.named_modules():
        key, own = f"{name}.relative_position_bias_table", getattr(module, "relative_position_bias_table", None)
        known = windows.get(name)
        if own is not None and key in state and (state[key].shape != own.shape or known not in (None, tuple(module.window_size))):
            resized.append(name)
            state[key] = _fit_table(state[key], own, tuple(module.window_size), known, name)
        key, own = f"{name}.attention_biases", getattr(module, "attention_biases", None)  # TinyViT's, by distance
        if own is not None and key in state and state[key].ndim == 2 and state[key].shape[1] != own.shape[1]:
            resized.append(name)
            state[key] = resize_rel_pos_bias_table_levit(state[key].T, (own.shape[1], len(state[key]))).T.contiguous()
    if resized:
        log.warning("relative position biases of %d layers are resized to other windows, the first of %s", len(resized), resized[0])


def _fit_table(given: Tensor, own: Tensor, window: Grid, known: Grid | None, name: str) -> Tensor:
    """One of them, [positions, heads] or [heads, rows, columns], for `window`; its own is `known`, or a square. Behind the positions of a
    flat one may be those of the class token, which stay."""
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    if given.ndim == 2:
        places = len(given) - len(own) + sides[0] * sides[1]
        side = isqrt(max(places, 0))
        if known is None and side**2 != places:
            raise VitfrostError(
                f"the weights at {name} are of {places} relative positions, which no square window has; give the image size of these "
                "weights (image_size=(height, width))"
            )
        rows = side if known is None else 2 * known[0] - 1
        table = given[:places].T.unflatten(1, (rows, -1))
        made = resize_rel_pos_bias_table(table, new_window_size=window, new_bias_shape=(given.shape[1], *sides))
        return torch.cat([made.flatten(1).T, given[places:]])
    return resize_rel_pos_bias_table(given, new_window_size=window, new_bias_shape=own.shape)  # type: ignore[no-any-return]


def _add_bias(model: Any, state: dict[str, torch.Tensor]) -> None:
    """A bias of zeros for a classifier whose file has its weight alone."""
    found = classifier_of(model)
    if found is not None and found[1].bias is not None and f"{found[0]}.weight" in state and f"{found[0]}.bias" not in state:
        state[f"{found[0]}.bias"] = torch.zeros(len(state[f"{found[0]}.weight"]))
        log.warning("%s has no bias in the weights; it is taken to be zero, as of a projection", found[0])


def _fit_positions(model: Any, given: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Position embeddings [1, tokens, channels] for the model's grid; as they are where their own grid is not known."""
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    target: tuple[int, int] = tuple(model.patch_embed.grid_size)
    patches = given.shape[1] - prefix
    same = patches == target[0] * target[1]
    if patches < 1:
        return given
    if grid is None:
        grid = grid_of_positions(given[0, prefix:], target if same else None)
    if grid is None or grid == target or grid[0] * grid[1] != patches:
        return given
    log.warning("position embeddings of %d x %d patches are resized to %d x %d", *grid, *target)
    return resample_abs_pos_embed(given, target, old_size=grid, num_prefix_tokens=prefix)  # type: ignore[no-any-return]
