"""From what a user names (a timm model, a loaded one, an artefact's folder) to a model that can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ..errors import VitfrostError
from ..vit.attention import MapAttention
from ..vit.families import find_sites
from ..vit.load import LoadedModel, load_model
from .cost import macs_by_part
from .inspection import skeleton

if TYPE_CHECKING:
    from ..plans.schema import Plan

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
    if isinstance(model, LoadedModel) or Path(model).is_dir():
        if weights is not None or image_size is not None:
            raise VitfrostError(f"{_shown(model)} brings its own weights and image size; give neither")
        loaded = model if isinstance(model, LoadedModel) else _load_artefact(Path(model))
        return _with_crop(loaded, crop_pct, crop_mode)
    if "/" in str(model) or "\\" in str(model):
        raise VitfrostError(f"there is no artefact folder {model}; give the folder that `vitfrost compress` wrote, or a timm name")
    return load_model(str(model), weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode)


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
            f"the reference {loaded.name} has {loaded.classes} classes, {model.name} has {model.classes}; give a reference with the same classes"
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
    """Kind, precision, seeds, plan, size and multiply-accumulates of a loaded model or artefact.

    Size is that of an artefact's file, else of the parameters. Fake-quantised models are "simulated".
    """
    quantization: dict[str, Any] | None = getattr(loaded, "quantization", None)
    plan: Plan | None = getattr(loaded, "plan", None)
    size = getattr(loaded, "size_bytes", None)
    if size is None:
        size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
    return Description(
        kind="executed" if quantization is None else "simulated",
        precision="fp32" if quantization is None or plan is None else precision_of(plan),
        seeds=dict(getattr(loaded, "seeds", {})),
        plan_hash=getattr(loaded, "plan_hash", None),
        size_bytes=int(size),
        macs=dense_macs(loaded),
    )


def precision_of(plan: Plan) -> str:
    """ "W4/A4" for 4-bit weights and activations, "fp32" where both stay in floating point."""
    weight_bits, activation_bits = plan.quantization.weight_bits, plan.quantization.activation_bits
    if weight_bits == activation_bits == FULL_PRECISION_BITS:
        return "fp32"
    return f"W{weight_bits}/A{activation_bits}"


def dense_macs(loaded: LoadedModel) -> int:
    """Multiply-accumulates per image that a dense machine executes; entry-wise frozen maps leave out none of them."""
    model: nn.Module = loaded.model
    if any(isinstance(module, MapAttention) for module in model.modules()):
        model, sites = skeleton(loaded.name, loaded.image_size, loaded.classes)
    else:
        sites = find_sites(model)
    return sum(macs_by_part(model, sites).values())


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) lie; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def runtime_of(model: nn.Module) -> str:
    """ "torch 2.13.0 cpu": what runs the model, and where."""
    return f"torch {torch.__version__.partition('+')[0]} {device_of(model).type}"


def _load_artefact(folder: Path) -> LoadedModel:
    from ..artefact import load_artefact

    return load_artefact(folder)


def _with_crop(loaded: LoadedModel, crop_pct: float | None, crop_mode: str | None) -> LoadedModel:
    from copy import copy

    changed = copy(loaded)
    changed.preprocessing = dict(loaded.preprocessing)
    if crop_pct is not None:
        changed.preprocessing["crop_pct"] = crop_pct
    if crop_mode is not None:
        changed.preprocessing["crop_mode"] = crop_mode
    return changed


def _shown(model: str | Path | LoadedModel) -> str:
    return f"the loaded model {model.name}" if isinstance(model, LoadedModel) else f"the artefact {model}"
