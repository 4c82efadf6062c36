"""Models of Hugging Face's transformers as timm has them: a configuration and a state dict in, architecture and weights out.

Needs no transformers: a `save_pretrained` folder is a `config.json` and a file of weights. Names are those of its versions 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModel, VitfrostError
from ..outputs import OutputKind
from .image_processor import MALFORMED

State = dict[str, Tensor]
KNOWN = "ViT, DeiT, Dinov2 (with registers), DINOv3 ViT, Swin, and the vision models of SigLIP and CLIP"

# What a layer of a block is called; the first pattern that fits counts.
_BLOCK = re.compile(r"^(?:encoder\.layers?|model\.layer|layers|layer)\.(\d+)\.(.+)$")
_PARTS = [
    (r"(?:attention\.attention\.|attention\.self\.|attention\.|self_attn\.)(?:query|q_proj)\.", "attn.q."),
    (r"(?:attention\.attention\.|attention\.self\.|attention\.|self_attn\.)(?:key|k_proj)\.", "attn.k."),
    (r"(?:attention\.attention\.|attention\.self\.|attention\.|self_attn\.)(?:value|v_proj)\.", "attn.v."),
    (r"(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj|self_attn\.o_proj)\.", "attn.proj."),
    (r"(?:attention\.self\.|attention\.relative_position_bias\.)relative_position_bias_table$", "attn.relative_position_bias_table"),
    (r"(?:layernorm_before|layer_norm1|norm1)\.", "norm1."),
    (r"(?:layernorm_after|layer_norm2|norm2)\.", "norm2."),
    (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
    (r"(?:output\.dense|mlp\.fc2|mlp\.down_proj|mlp\.weights_out)\.", "mlp.fc2."),
    (r"mlp\.weights_in\.", "mlp.fc1."),
    (r"layer_scale1\.lambda1$", "ls1.gamma"),
    (r"layer_scale2\.lambda1$", "ls2.gamma"),
]
_PATCHES = re.compile(r"^embeddings\.patch_embeddings?\.(?:projection\.)?(weight|bias)$")
# In files, and of no use to an image: masks, the text tower, indices that follow from the sizes.
_LEFT_OUT = ("mask_token", "relative_position_index", "position_ids", "text_model.", "text_projection", "logit_scale", "logit_bias",
             "rope_embeddings", "pooler.dense")  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A model as timm makes it: architecture, image size and options, its weights; `taken`, a function that takes the same outputs from
    what the original puts out; what these are, where timm's classifier is none, and what they are called."""

    name: str
    image_size: tuple[int, int]
    options: dict[str, Any]
    state: State
    taken: Callable[[Any], Tensor]
    outputs: OutputKind | None = None
    class_names: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = field(default=())


def is_configuration(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model of transformers."""
    return isinstance(config.get("model_type"), str)


def convert(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """The same model in timm. Raises UnsupportedModel naming what timm has no place for."""
    kind = str(config.get("model_type"))
    if isinstance(config.get("vision_config"), Mapping):  # of a model with a text tower
        config = {"projection_dim": config.get("projection_dim"), **config["vision_config"]}
        kind = f"{kind}_vision_model" if kind in ("clip", "siglip", "siglip2") else kind
    if kind == "siglip2_vision_model" and "image_size" not in config:
        raise UnsupportedModel(
            "this SigLIP 2 has NaFlex inputs, patches of pictures of any shape (num_patches in the place of image_size), which are not "
            "supported; give one of a fixed image size (model_type siglip)"
        )
    kind = {"siglip2_vision_model": "siglip_vision_model"}.get(kind, kind)
    if kind not in _KINDS:
        raise UnsupportedModel(f"a model of the type '{kind}' of transformers is not supported; supported are {KNOWN}")
    if (channels := config.get("num_channels", 3)) != 3:
        raise UnsupportedModel(f"this model reads images of num_channels {channels}, and pictures are read as RGB; give a model of three")
    kept = {name: value for name, value in state.items() if not any(part in name for part in _LEFT_OUT)}
    named = _neutral({name: value for name, value in kept.items() if value.numel() or not name.endswith("register_tokens")})
    try:
        made: Converted = _KINDS[kind](config, named)
        names = class_names(config) if made.options["num_classes"] and made.outputs is None else None
    except MALFORMED as error:
        what = f"{type(error).__name__}: {str(error)[:100]}"
        raise VitfrostError(
            f"the configuration of type '{kind}' does not go with its weights ({what}); give both as they were saved"
        ) from error
    left = tuple(sorted({name.rpartition(".")[0] for name in state if "pooler.dense" in name}))
    return replace(made, class_names=names, left_out=left)


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label`, unless it says no more than numbers."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or not labels:
        return None
    ordered = [str(labels[key]) for key in sorted(labels, key=int)]
    return None if all(re.fullmatch(r"LABEL_\d+", label) for label in ordered) else tuple(ordered)


def _neutral(state: Mapping[str, Tensor]) -> State:
    """Weights under timm's names as far as these are the same for all; the model's own prefix is taken off."""
    prefixes = {name.partition(".")[0] for name in state}
    towers = prefixes & {"vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "swin", "vision_model"}
    prefix = f"{towers.pop()}." if len(towers) == 1 else ""
    found: State = {}
    for name, value in state.items():
        short = name.removeprefix(prefix)
        if patches := _PATCHES.match(short):
            short = f"patch_embed.proj.{patches[1]}"
        elif block := _BLOCK.match(short):
            inner = block[2]
            for pattern, replacement in _PARTS:
                inner, count = re.subn(f"^{pattern}", replacement, inner)
                if count:
                    break
            short = f"blocks.{block[1]}.{inner}"
        found[short] = value
    return found


def _merge_projections(state: State, at: str = "attn") -> State:
    """Queries, keys and values of a layer in one; where only keys have no bias, theirs is zero."""
    made = {name: value for name, value in state.items() if not re.search(rf"\.{at}\.[qkv]\.(weight|bias)$", name)}
    for name in [name for name in state if name.endswith(f".{at}.q.weight")]:
        stem = name.removesuffix("q.weight")
        made[f"{stem}qkv.weight"] = torch.cat([state[f"{stem}{part}.weight"] for part in "qkv"])
        biases = [state.get(f"{stem}{part}.bias") for part in "qkv"]
        if any(bias is not None for bias in biases):
            made[f"{stem}qkv.bias"] = torch.cat(
                [
                    torch.zeros(len(state[f"{stem}{part}.weight"])) if bias is None else bias
                    for part, bias in zip("qkv", biases, strict=True)
                ]
            )
    return made


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    side = config["image_size"]
    return (int(side[0]), int(side[1])) if isinstance(side, list | tuple) else (int(side), int(side))


def _patch(config: Mapping[str, Any]) -> int:
    side = config["patch_size"]
    return int(side[0] if isinstance(side, list | tuple) else side)


def _options(config: Mapping[str, Any], eps: float) -> dict[str, Any]:
    """What all plain ViTs are told."""
    width = int(config["hidden_size"])
    hidden = int(config.get("intermediate_size") or width * config.get("mlp_ratio", 4))
    ratio = hidden / width
    return {
        "patch_size": _patch(config),
        "embed_dim": width,
        "depth": int(config["num_hidden_layers"]),
        "num_heads": int(config["num_attention_heads"]),
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        "norm_eps": float(config.get("layer_norm_eps", eps)),
    }


def _activation(config: Mapping[str, Any]) -> dict[str, Any]:
    name = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu", "gelu": "gelu"}.get(config["hidden_act"])
    if name is None:
        raise UnsupportedModel(f"the activation '{config['hidden_act']}' (hidden_act) is not supported; supported are gelu and quick_gelu")
    return {"act_layer": name}


def _require_activation(config: Mapping[str, Any], known: str, model: str) -> None:
    """Raise UnsupportedModel for another activation than the one that timm's model has."""
    given = {"swish": "silu"}.get(config.get("hidden_act", "gelu"), config.get("hidden_act", "gelu"))
    if given != known:
        raise UnsupportedModel(f"the activation '{given}' (hidden_act) of this {model} is not supported; timm's has {known}")


def _refuse_classifier(state: State, model: str, reads: str, without: str) -> None:
    """Raise UnsupportedModel for a classifier that reads what timm's does not."""
    if "classifier.weight" in state:
        raise UnsupportedModel(
            f"the classifier of {model} reads {reads}, which timm's does not; give the model without it (module.{without})"
        )


def _renamed(state: State, names: Mapping[str, str]) -> State:
    return {names.get(name, name): value for name, value in state.items()}


def _classifier(state: State, name: str = "classifier") -> tuple[State, int]:
    """The classifier under timm's name, and how many classes it has; 0 for a model without."""
    made = {key.replace(f"{name}.", "head.", 1) if key.startswith(f"{name}.") else key: value for key, value in state.items()}
    return made, len(made["head.weight"]) if "head.weight" in made else 0


def _first_token(outputs: Any) -> Tensor:
    tokens: Tensor = outputs.last_hidden_state
    return tokens[:, 0]


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs.logits
    return logits


def _pooled(outputs: Any) -> Tensor:
    pooled: Tensor = outputs.pooler_output
    return pooled


_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.distillation_token": "reg_token",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


def _vit(config: Mapping[str, Any], state: State) -> Converted:
    state, classes = _classifier(_merge_projections(_renamed(state, _EMBEDDINGS)))
    options = _options(config, 1e-12) | _activation(config) | {"qkv_bias": config.get("qkv_bias", True), "num_classes": classes}
    return Converted("vit_base_patch16_224", _size(config), options, state, _logits if classes else _first_token)


def _deit(config: Mapping[str, Any], state: State) -> Converted:
    """With both classifiers as timm's distilled model; else the distillation token is one among others."""
    taught = "cls_classifier.weight" in state
    options = _options(config, 1e-12) | _activation(config) | {"qkv_bias": config.get("qkv_bias", True)}
    if taught:
        names = {f"distillation_classifier.{part}": f"head_dist.{part}" for part in ("weight", "bias")}
        names |= _EMBEDDINGS | {"embeddings.distillation_token": "dist_token"}
        state, classes = _classifier(_merge_projections(_renamed(state, names)), "cls_classifier")
        return Converted("deit_base_distilled_patch16_224", _size(config), options | {"num_classes": classes}, state, _logits)
    state, classes = _classifier(_merge_projections(_renamed(state, _EMBEDDINGS)))
    options |= {"reg_tokens": 1, "num_classes": classes}
    return Converted("vit_base_patch16_224", _size(config), options, state, _logits if classes else _first_token)


def _dinov2(config: Mapping[str, Any], state: State) -> Converted:
    _refuse_classifier(state, "Dinov2", "the class token and the mean of the patches", str(config["model_type"]))
    state = _merge_projections(_renamed(state, _EMBEDDINGS))
    options = _options(config, 1e-6) | {"qkv_bias": config.get("qkv_bias", True), "init_values": 1.0, "num_classes": 0}
    name = "vit_base_patch14_dinov2"
    if config.get("use_swiglu_ffn"):
        name, state = "vit_giant_patch14_dinov2", _pack_gates(state)
        options["mlp_ratio"] = (len(state["blocks.0.mlp.fc1.weight"]) + 0.5) / config["hidden_size"]
    else:
        options |= _activation(config)
    if "reg_token" in state:  # positions of the class token are part of it in timm
        options |= {"reg_tokens": state["reg_token"].shape[1], "no_embed_class": True}
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return Converted(name, _size(config), options, state, _first_token)


def _pack_gates(state: State) -> State:
    """Gate and input of a SwiGLU block as one layer."""
    made = {name: value for name, value in state.items() if ".mlp.gate_proj." not in name and ".mlp.up_proj." not in name}
    for name in [name for name in state if ".mlp.gate_proj." in name]:
        made[name.replace("gate_proj", "fc1")] = torch.cat([state[name], state[name.replace("gate_proj", "up_proj")]])
    return made


def _dinov3(config: Mapping[str, Any], state: State) -> Converted:
    """timm has biases of queries and values apart, and LayerScale under another name."""
    gated = bool(config.get("use_gated_mlp"))
    _require_activation(config, "silu" if gated else "gelu", "DINOv3 with gates" if gated else "DINOv3")
    names = _EMBEDDINGS | {"embeddings.patch_embeddings.weight": "patch_embed.proj.weight"}
    state = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): value for name, value in _renamed(state, names).items()}
    if config.get("key_bias"):
        raise UnsupportedModel("this DINOv3 has biases of keys, which timm's has not")
    biased = any(name.endswith((".attn.q.bias", ".attn.v.bias")) for name in state)
    for name in [name for name in state if re.search(r"\.(attn\.[qv]|attn\.proj|mlp\.\w+)\.weight$", name)]:
        stem = name.removesuffix(".weight")
        bias = state.pop(f"{stem}.bias", torch.zeros(len(state[name])))  # timm's layers have one
        if not stem.endswith((".q", ".v")):
            state[f"{stem}.bias"] = bias
        elif biased:
            state[f"{stem}_bias"] = bias
    first = {"gate_proj": "fc1_g", "up_proj": "fc1_x"} if gated else {"up_proj": "fc1"}
    state = {re.sub(r"\.mlp\.(gate_proj|up_proj)\.", lambda m: f".mlp.{first[m[1]]}.", name): value for name, value in state.items()}
    options = _options(config, 1e-5) | {
        "qkv_bias": biased,
        "num_reg_tokens": int(config.get("num_register_tokens", 0)),
        "global_pool": "token",
        "num_classes": 0,
    }
    if gated:
        options |= {"swiglu_mlp": True, "swiglu_align_to": 1}
    if abs(float(config.get("rope_theta", 100.0)) - 100.0) > 1e-6:
        raise UnsupportedModel(f"this DINOv3 has rope_theta {config['rope_theta']}; timm's models have 100")
    return Converted("vit_base_patch16_dinov3", _size(config), options, _merge_projections(state), _first_token)


def _swin(config: Mapping[str, Any], state: State) -> Converted:
    """Patches are merged before a stage in timm, behind the stage before it in transformers."""
    _require_activation(config, "gelu", "Swin")
    if config.get("use_absolute_embeddings"):
        raise UnsupportedModel("this Swin has absolute positions (use_absolute_embeddings), which timm's has not; give one without")
    if abs(float(config.get("layer_norm_eps", 1e-5)) - 1e-5) > 1e-9:
        raise UnsupportedModel(
            f"this Swin has layer_norm_eps {config['layer_norm_eps']} in its blocks alone, and timm's has one for all; give one with 1e-5"
        )
    made: State = {}
    for name, value in state.items():
        if stage := re.match(r"^blocks\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.+)$", name):
            if stage[2] is None:
                name = f"layers.{int(stage[1]) + 1}.downsample.{stage[3]}"
            else:
                inner = stage[3]
                for pattern, replacement in _PARTS:
                    inner, count = re.subn(f"^{pattern}", replacement, inner)
                    if count:
                        break
                name = f"layers.{stage[1]}.blocks.{stage[2]}.{inner}"
        made[name] = value
    names = {f"embeddings.norm.{part}": f"patch_embed.norm.{part}" for part in ("weight", "bias")}
    made, classes = _classifier(_merge_projections(_renamed(made, _EMBEDDINGS | names)))
    made = {name.replace("head.", "head.fc.", 1) if name.startswith("head.") else name: value for name, value in made.items()}
    options = {
        "patch_size": _patch(config),
        "window_size": int(config["window_size"]),
        "embed_dim": int(config["embed_dim"]),
        "depths": tuple(config["depths"]),
        "num_heads": tuple(config["num_heads"]),
        "mlp_ratio": float(config["mlp_ratio"]),
        "qkv_bias": config.get("qkv_bias", True),
        "num_classes": classes,
        "norm_eps": 1e-5,
    }
    return Converted("swin_tiny_patch4_window7_224", _size(config), options, made, _logits if classes else _pooled)


def _siglip(config: Mapping[str, Any], state: State) -> Converted:
    _refuse_classifier(state, "SigLIP", "the mean of the tokens", "vision_model")
    if "head.probe" not in state:
        raise UnsupportedModel("this SigLIP has no head that pools its tokens, which timm's has")
    names = {
        "embeddings.position_embedding.weight": "pos_embed",
        "post_layernorm.weight": "norm.weight",
        "post_layernorm.bias": "norm.bias",
        "head.probe": "attn_pool.latent",
    }
    names |= {f"head.attention.out_proj.{part}": f"attn_pool.proj.{part}" for part in ("weight", "bias")}
    names |= {f"head.layernorm.{part}": f"attn_pool.norm.{part}" for part in ("weight", "bias")}
    names |= {f"head.mlp.{layer}.{part}": f"attn_pool.mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")}
    state = _merge_projections(_renamed(state, names))
    width = int(config["hidden_size"])
    for part in ("weight", "bias"):
        stacked = state.pop(f"head.attention.in_proj_{part}")
        state[f"attn_pool.q.{part}"], state[f"attn_pool.kv.{part}"] = stacked[:width], stacked[width:]
    state["pos_embed"] = state["pos_embed"][None]
    options = _options(config, 1e-6) | _activation(config) | {"num_classes": 0}
    return Converted("vit_base_patch16_siglip_224", _size(config), options, state, _pooled)


def _clip(config: Mapping[str, Any], state: State) -> Converted:
    _refuse_classifier(state, "CLIP", "the mean of the patches", "vision_model")
    names = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
        "visual_projection.weight": "head.weight",
    }
    for part in ("weight", "bias"):
        names |= {f"pre_layrnorm.{part}": f"norm_pre.{part}", f"post_layernorm.{part}": f"norm.{part}"}
    state = _merge_projections(_renamed(state, names))
    state["cls_token"], state["pos_embed"] = state["cls_token"][None, None], state["pos_embed"][None]
    width = len(state["head.weight"]) if "head.weight" in state else 0  # of the projection
    options = _options(config, 1e-5) | _activation(config) | {"num_classes": width}
    size, name = _size(config), "vit_base_patch16_clip_224"
    return Converted(name, size, options, state, _embeds, "embedding") if width else Converted(name, size, options, state, _pooled)


def _embeds(outputs: Any) -> Tensor:
    embeds: Tensor = outputs.image_embeds
    return embeds


_KINDS: dict[str, Callable[[Mapping[str, Any], State], Converted]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "swin": _swin,
    "siglip_vision_model": _siglip,
    "clip_vision_model": _clip,
}
