"""Modules of transformers and of torchvision: the same architecture in timm with their weights, compared before it is used."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModel, VitfrostError
from .huggingface import Converted, State, convert, is_configuration
from .image_processor import read_object
from .kinds import is_kind, named
from .load import create_model, load_state
from .registry import alike
from .resize import fit_state

TOLERANCE = 1e-4  # of the largest output
CONFIGURATION = "config.json"


def convert_module(module: nn.Module) -> Converted | None:
    """What a module of transformers or torchvision is in timm; None for any other. Raises UnsupportedModel for one without counterpart."""
    homes = {each.__module__.partition(".")[0] for each in type(module).__mro__}
    if "transformers" in homes and hasattr(module, "config"):
        config = module.config.to_dict()  # type: ignore[union-attr, operator]
        if isinstance(config.get("vision_config"), Mapping) and hasattr(module, "text_model"):
            raise UnsupportedModel(f"this {type(module).__name__} has a text tower too; give its vision model (module.vision_model)")
        return convert(config, module.state_dict())
    return _torchvision(module) if "torchvision" in homes else None


def build(converted: Converted, what: str) -> Any:
    """timm's module with the weights, in evaluation mode. Raises VitfrostError where they do not fit."""
    made = create_model(converted.name, converted.image_size, **converted.options)
    load_state(made, fit_state(made, converted.state), f"of this {what}")
    return made.eval()


@torch.inference_mode()
def check_same(module: nn.Module, made: nn.Module, converted: Converted) -> None:
    """Compare the outputs on random pixels. Raises UnsupportedModel where they differ, and for a module that gives none to compare."""
    pixels = torch.randn(2, 3, *converted.image_size, generator=torch.Generator().manual_seed(0))
    expected = _outputs(module, pixels, converted)
    found: Tensor = made(pixels)
    if found.shape != expected.shape:
        raise UnsupportedModel(
            f"this {type(module).__name__} gives {list(expected.shape)} for two images, and timm's {converted.name} {list(found.shape)}"
        )
    off = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)
    if not off <= TOLERANCE:
        raise UnsupportedModel(
            f"this {type(module).__name__} gives other outputs than timm's {converted.name} with its weights ({off:.1e})"
        )


def _outputs(module: nn.Module, pixels: Tensor, converted: Converted) -> Tensor:
    """What the original gives for pixels. Raises UnsupportedModel where it cannot be run on them, or gives something else."""
    what = f"this {type(module).__name__}"
    try:
        said = copy.deepcopy(module).cpu().float().eval()(pixels)
    except Exception as error:  # foreign code
        raise UnsupportedModel(
            f"{what} cannot be run on pixels alone ({type(error).__name__}: {str(error)[:100]}); give the model that reads them"
        ) from error
    try:
        return converted.taken(said)
    except (AttributeError, TypeError, IndexError) as error:
        mend = "set its config.return_dict" if isinstance(said, tuple) else "give the model itself"
        raise UnsupportedModel(f"{what} gives a {type(said).__name__}, which does not name the outputs of a model; {mend}") from error


def convert_folder(folder: str | Path, state: State, name: str) -> Converted | None:
    """What the weights of a folder of `save_pretrained` are in timm; None for any other folder, or a file.

    `name`: the architecture of timm that is asked for. Raises UnsupportedModel for a model without counterpart, VitfrostError for the name
    of an architecture that is built in another way.
    """
    config = read_object(Path(folder) / CONFIGURATION)
    if config is None or not is_configuration(config):
        return None
    converted = convert(config, state)
    with torch.device("meta"):  # layers without memory for their weights
        own, given = create_model(converted.name, converted.image_size, **converted.options), create_model(name)
        if type(given) is type(own):
            given = create_model(name, converted.image_size, **converted.options)
    if not alike(given, own):
        kind, other = type(own).__name__, type(given).__name__
        how = f"is a {other}" if other != kind else "is built in another way"
        raise VitfrostError(
            f"the folder {folder} holds a model of the type '{config['model_type']}', timm's {converted.name} ({kind}), and {name} {how}; "
            f"give {converted.name} as the model's name"
        )
    return converted


def _classifier(heads: Any, what: str) -> str | None:
    """The name of the one linear layer in torchvision's heads; None where they have no weights. Raises UnsupportedModel for more."""
    if hasattr(heads, "pre_logits"):
        raise UnsupportedModel(
            f"{what} has a layer before its classifier (heads.pre_logits, of representation_size), which timm's has not; give one without"
        )
    layers = {name: layer for name, layer in heads.named_modules(prefix="heads") if next(layer.parameters(recurse=False), None) is not None}
    if len(layers) > 1 or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        found = ", ".join(f"{name}, a {type(layer).__name__}" for name, layer in layers.items())
        raise UnsupportedModel(f"{what} has other heads than a linear layer ({found}); give one with a linear layer, or nn.Identity()")
    return next(iter(layers), None)


def _torchvision(module: Any) -> Converted | None:
    """torchvision's VisionTransformer, and subclasses with the same forward pass; None for any other module of torchvision.

    Raises UnsupportedModel for another forward pass, and for heads that timm's has no place for.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    if not isinstance(module, VisionTransformer):
        return None
    if not is_kind(module, VisionTransformer):
        raise UnsupportedModel(f"this {named(module, VisionTransformer)}, is not supported; give torchvision's own")
    classifier = _classifier(module.heads, f"this {type(module).__name__}")
    layers, size = module.encoder.layers, int(module.image_size)
    state: State = {}
    names = {
        "class_token": "cls_token", "encoder.pos_embedding": "pos_embed", "conv_proj.weight": "patch_embed.proj.weight",
        "conv_proj.bias": "patch_embed.proj.bias", "encoder.ln.weight": "norm.weight", "encoder.ln.bias": "norm.bias",
    }  # fmt: skip
    names |= {} if classifier is None else {f"{classifier}.{part}": f"head.{part}" for part in ("weight", "bias")}
    parts = {
        "ln_1.": "norm1.", "ln_2.": "norm2.", "self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj.": "attn.proj.",
        "mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2.", "mlp.linear_1.": "mlp.fc1.", "mlp.linear_2.": "mlp.fc2.",
    }  # fmt: skip
    for name, value in module.state_dict().items():
        if inner := re.match(r"^encoder\.layers\.encoder_layer_(\d+)\.(.+)$", name):
            part = next((part for part in parts if inner[2].startswith(part)), "")
            name = f"blocks.{inner[1]}.{parts.get(part, '')}{inner[2].removeprefix(part)}"
        state[names.get(name, name)] = value
    options = {
        "patch_size": int(module.patch_size), "embed_dim": int(module.hidden_dim), "depth": len(layers),
        "num_heads": int(layers[0].num_heads), "mlp_ratio": module.mlp_dim / module.hidden_dim,
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0, "norm_eps": float(module.encoder.ln.eps),
    }  # fmt: skip
    return Converted("vit_base_patch16_224", (size, size), options, state, lambda outputs: outputs)
