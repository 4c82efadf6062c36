"""Which options may reach timm's factory, by name and type.

An artifact's `config.json` and a recipe name them, and both may come from anybody. timm's factory has options that read files
(`checkpoint_path` unpickles one, `pretrained_cfg` names others) or take code (`norm_layer` as a class): none of these are here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import VitfrostError

LARGEST = 2**20  # of any number that sizes a layer; what is larger is a mistake, or meant to exhaust the memory
DEEPEST = 256  # layers, of which each takes time to make


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_depth(value: Any) -> bool:
    return _is_count(value) and value <= DEEPEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= LARGEST


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9_]*", value) is not None


def _one_or_several(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_one_or_several(value: Any) -> bool:
        return check(value) or (isinstance(value, list | tuple) and 0 < len(value) <= 64 and all(check(item) for item in value))

    return is_one_or_several


_KINDS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "true or false": (
        lambda value: isinstance(value, bool),
        (
            "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "class_token", "no_embed_class", "pre_norm",
            "final_norm", "fc_norm", "pool_include_prefix", "dynamic_img_size", "dynamic_img_pad", "fix_init", "always_partition",
            "strict_img_size", "linear", "qkv_fused", "swiglu_mlp", "scale_mlp", "scale_attn_inner", "use_abs_pos_emb",
            "use_rot_pos_emb", "rope_rotate_half", "use_post_norm", "use_pre_transformer_norm", "use_post_transformer_norm",
            "use_fc_norm", "use_rel_pos_bias", "use_shared_rel_pos_bias", "shared_rel_pos",
        ),
    ),
    "a whole number from 0 on": (
        _is_count,
        ("num_classes", "in_chans", "embed_dim", "reg_tokens", "num_reg_tokens", "head_dim", "num_kv_heads", "swiglu_align_to"),
    ),
    f"a whole number from 0 to {DEEPEST}": (_is_depth, ("depth",)),
    f"whole numbers from 0 to {DEEPEST}": (_one_or_several(_is_depth), ("depths", "stages")),
    "whole numbers from 0 on": (
        _one_or_several(_is_count),
        (
            "patch_size", "window_size", "window_sizes", "position_size", "num_heads", "embed_dims", "sr_ratios", "stem_chs", "strides",
            "img_size",
        ),
    ),
    "a number from 0 on": (
        _is_number,
        (
            "init_values", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
            "mix_block_ratio", "norm_eps",
        ),
    ),
    "numbers from 0 on": (_one_or_several(_is_number), ("mlp_ratio", "mlp_ratios")),
    "a name of small letters, digits and underscores": (
        _is_word,
        ("global_pool", "pos_embed", "weight_init", "norm_layer", "act_layer", "embed_norm_layer"),
    ),
}  # fmt: skip
ARCHITECTURE_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    name: (kind, check) for kind, (check, names) in _KINDS.items() for name in names
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise VitfrostError, one line, for an option that is not on the list, or has another type than it says there. None (timm's
    own default) is always allowed."""
    for name, value in options.items():
        if name not in ARCHITECTURE_OPTIONS:
            import difflib

            near = difflib.get_close_matches(str(name), ARCHITECTURE_OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(sorted(ARCHITECTURE_OPTIONS))}"
            raise VitfrostError(f"the model option {str(name)[:60]!r} is not allowed; {hint}")
        kind, check = ARCHITECTURE_OPTIONS[name]
        if value is not None and not check(value):
            raise VitfrostError(f"the model option {name} is {repr(value)[:60]}; give {kind}")
