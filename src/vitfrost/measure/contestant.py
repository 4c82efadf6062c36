"""From what a user names (a timm model, a loaded one, an artefact's folder) to a model that can be measured."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..compression.frozen import FrozenMaps
from ..errors import VitfrostError
from ..vit.attention import MapAttention
from ..vit.compat import import_timm
from ..vit.families import find_sites
from ..vit.load import LoadedModel, load_model, set_crop
from .cost import logit_macs, macs_by_part
from .inspection import skeleton

timm = import_timm()
FULL_PRECISION_BITS = 32


def open_model(
    model: str | Path | LoadedModel,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
) -> LoadedModel:
    """Load a timm name, an artefact's folder, or take a LoadedModel; crops given here replace the model's own.

    Raises VitfrostError when weights or an image size are given for something that has its own.
    """
    if not isinstance(model, LoadedModel) and not names_artefact(model):
        return load_model(str(model), weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode)
    if weights is not None or image_size is not None:
        shown = f"the loaded model {model.name}" if isinstance(model, LoadedModel) else f"the artefact {model}"
        raise VitfrostError(f"{shown} brings its own weights and image size; give neither")
    return _with_crop(model if isinstance(model, LoadedModel) else _load_artefact(model), crop_pct, crop_mode)


def names_artefact(model: str | Path) -> bool:
    """True for a path, a name with a separator, and, if timm has no such model, that of a folder with a config.json."""
    if isinstance(model, Path) or "/" in model or "\\" in model:
        return True
    return (Path(model) / "config.json").is_file() and not timm.is_model(model)


def open_reference(
    reference: str | Path | LoadedModel,
    model: LoadedModel,
    weights: str | Path | None = None,
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
) -> LoadedModel:
    """Load the model to compare with.

    A reference given by the same timm name is built for the same image size and sees the same pixels as the model.
    Raises VitfrostError when it has other classes.
    """
    same = isinstance(reference, str) and reference == model.name
    loaded = open_model(reference, weights, model.image_size if same else None, crop_pct=crop_pct, crop_mode=crop_mode)
    if same:
        loaded.preprocessing = dict(model.preprocessing)
    if loaded.classes != model.classes:
        raise VitfrostError(
            f"the reference {loaded.name} has {loaded.classes} classes, {model.name} has {model.classes}; they must have the same classes"
        )
    return loaded


@dataclass(frozen=True)
class Description:
    """What is written into a result row about a model."""

    kind: Literal["executed", "simulated"]
    precision: str
    seeds: dict[str, int]
    plan_hash: str | None
    size_bytes: int
    macs: int


def describe(loaded: LoadedModel) -> Description:
    """Kind, precision ("fp32", "W4/A4"), seeds, plan, size and multiply-accumulates of a loaded model or artefact.

    Size is that of an artefact's folder, else of the parameters. Fake-quantised models are "simulated".
    """
    from ..artefact import Artefact

    macs = executed_macs(loaded)
    if not isinstance(loaded, Artefact):
        size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
        return Description("executed", "fp32", {}, None, size, macs)
    weight_bits, activation_bits = loaded.plan.quantize.weight_bits, loaded.plan.quantize.activation_bits
    full = weight_bits == activation_bits == FULL_PRECISION_BITS
    return Description(
        kind="executed" if full else "simulated",
        precision="fp32" if full else f"W{weight_bits}/A{activation_bits}",
        seeds=dict(loaded.seeds),
        plan_hash=loaded.plan_hash,
        size_bytes=loaded.size_bytes,
        macs=macs,
    )


def executed_macs(loaded: LoadedModel) -> int:
    """Multiply-accumulates per image that are executed: those of the original less Q K^T of wholly frozen heads."""
    model: nn.Module = loaded.model
    attention = [module for module in model.modules() if isinstance(module, MapAttention)]
    saved = 0
    for module in attention:
        if isinstance(module.frozen, FrozenMaps):
            saved += logit_macs(module.site) // module.site.heads * len(module.frozen.constant_heads)
    plain, sites = skeleton(loaded) if attention else (model, find_sites(model))
    return sum(macs_by_part(plain, sites).values()) - saved


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) lie; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def runtime_of(model: nn.Module) -> str:
    """ "torch 2.13.0 cpu": what runs the model, and where."""
    return f"torch {torch.__version__.partition('+')[0]} {device_of(model).type}"


def _load_artefact(folder: str | Path) -> LoadedModel:
    from ..artefact import load_artefact

    return load_artefact(folder)


def _with_crop(loaded: LoadedModel, crop_pct: float | None, crop_mode: str | None) -> LoadedModel:
    changed = copy(loaded)
    changed.preprocessing = dict(loaded.preprocessing)
    set_crop(changed.preprocessing, crop_pct, crop_mode)
    return changed
