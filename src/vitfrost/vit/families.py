"""Which family a model belongs to, and why a model is refused.

A new family is one module, named in `_FAMILIES`, with `NAMES`, `matches`, `find_sites`, `map_attention`, `forward_pass`, and
`allowed_pairs` where masks hide pairs, `final_grid` where that is not the grid of the patch embedding. `OWN_ATTENTION_IN_ONNX` is True
where ONNX has no form of the attention that timm computes.
"""

from __future__ import annotations

import copy
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import UnsupportedModel
from . import coatnet, eva, hiera, maxvit, nextvit, plain, pvt_sites, qwen, relative, swin, swin_v2, tiny_vit
from .attention import MapAttention
from .forward import ForwardPass
from .grid_seen import GridSeen
from .kinds import is_kind, named
from .sites import ModelSites

_FAMILIES = (plain, eva, relative, qwen, swin, swin_v2, pvt_sites, nextvit, coatnet, maxvit, tiny_vit, hiera)
_NAMES = [name for family in _FAMILIES for name in family.NAMES]
_SUPPORTED = f"supported are {', '.join(_NAMES[:-1])} and {_NAMES[-1]}"

# Class names of timm models whose attention is understood well enough to say why it is refused.
_REFUSALS = {
    "Xcit": "cross-covariance (channel) attention",
    "Cait": "talking-heads attention (maps are mixed of those of all heads before and after the softmax, so no head can be frozen apart)",
    "NaFlexVit": "NaFlex inputs (dictionaries of patches)",
    "VisionTransformerSAM": "decomposed relative positions (SAM)",
}


def family_of(model: nn.Module) -> Any:
    """The module of `model`'s family.

    Raises UnsupportedModel in one line that names what is unsupported.
    """
    for family in _FAMILIES:
        if family.matches(model):
            return family
    name = type(model).__name__
    for family in _FAMILIES:
        if (told := named(model, *family.KINDS)) != name:
            raise UnsupportedModel(f"this model is a {told}; only the forward pass of the class itself is supported")
    if name in _REFUSALS:
        raise UnsupportedModel(f"{name} uses {_REFUSALS[name]}, which is not supported; {_SUPPORTED}")
    for path, module in model.named_modules():
        if path and any(family.matches(module) for family in _FAMILIES):
            raise UnsupportedModel(f"{name} wraps a {type(module).__name__} at .{path}; give that module alone")
        kind = type(module).__name__
        if "Attention" in kind or "Attn" in kind or any(hasattr(module, part) for part in ("num_heads", "qkv", "qk")):
            raise UnsupportedModel(f"{name} has {kind} at '{path}', which is not supported; {_SUPPORTED}")
    raise UnsupportedModel(f"{name} has no attention layers (not a transformer); {_SUPPORTED}")


def find_sites(model: nn.Module) -> ModelSites:
    """Sites of any supported timm model. Raises UnsupportedModel in one line that names what is unsupported."""
    sites: ModelSites = family_of(model).find_sites(model)
    return sites


def forward_pass(model: nn.Module) -> ForwardPass:
    """How a model runs block by block, also with run-time attention and changed layers. Raises UnsupportedModel."""
    described: ForwardPass = family_of(model).forward_pass(model)
    return described


def built_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that the patch embedding was built for; None for a model that takes any, or does not say it."""
    if is_kind(model, *qwen.KINDS):
        return None
    if is_kind(model, *hiera.KINDS):
        return hiera.image_size_of(model)
    holder = model if is_kind(model, *maxvit.KINDS) else getattr(model, "patch_embed", None)
    return getattr(holder, "img_size", None)


def final_grid(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the tokens (but prefix tokens) that a model's last block gives; None where nothing says it. Raises
    UnsupportedModel."""
    find_grid = getattr(family_of(model), "final_grid", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None) if find_grid is None else find_grid(model)
    return None if grid is None else (int(grid[0]), int(grid[1]))


def has_class_token(model: nn.Module) -> bool:
    """Whether the first of the tokens before the patches is a class token."""
    return getattr(model, "cls_token", None) is not None


def allowed_pairs(model: nn.Module, site_name: str) -> Bool[Tensor, "windows queries keys"] | None:
    """The pairs of a site that may attend to each other; None where all may (everything but shifted windows).

    Raises UnsupportedModel.
    """
    find_pairs = getattr(family_of(model), "allowed_pairs", None)
    return None if find_pairs is None else find_pairs(model.get_submodule(site_name.rpartition(".")[0]))


def install_map_attention(model: nn.Module) -> dict[str, MapAttention]:
    """Replace every attention layer of `model` in place by MapAttention; layers already replaced are kept.

    Returns the run-time attention modules by site name. Outputs equal the original's (fp32, max abs difference 1e-5).
    """
    modules: dict[str, MapAttention] = {}
    if any(isinstance(module, MapAttention) for module in model.modules()):
        return {name: module for name, module in model.named_modules() if isinstance(module, MapAttention)}
    family, sites = family_of(model), find_sites(model)
    for site in sites.attention:
        modules[site.name] = family.map_attention(model.get_submodule(site.name), site)
        model.set_submodule(site.name, modules[site.name])
    _tell_grids(model, modules)
    return modules


def _tell_grids(model: Any, modules: dict[str, MapAttention]) -> None:
    """Let the attention layers of a model that takes images of any size know how large an image is."""
    if getattr(model, "dynamic_img_size", False):
        seen = GridSeen()
        model.patch_embed.register_forward_pre_hook(seen)
        for module in modules.values():
            module.seen = seen


def fit_for_onnx(model: nn.Module) -> nn.Module:
    """The model, where ONNX has no form of timm's attention a copy with the run-time attention; outputs are equal (fp32: 1e-5)."""
    if any(family.matches(model) and getattr(family, "OWN_ATTENTION_IN_ONNX", False) for family in _FAMILIES):
        model = copy.deepcopy(model)
        install_map_attention(model)
    return model


def show_layers(model: nn.Module) -> None:
    """Make every linear layer of `model` a call that hooks see, in place.

    timm multiplies with the weights itself where biases stand apart from them (BEiT, EVA, Swin version 2).
    """
    if any(getattr(module, "q_bias", None) is not None for module in model.modules()):
        install_map_attention(model)
