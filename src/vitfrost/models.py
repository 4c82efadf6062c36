"""From what a user names (a timm model, a loaded one, the folder of an artifact or of an export) to a model."""

from __future__ import annotations

from copy import copy
from pathlib import Path

from .artifact import load_artifact
from .deploy.exported import load_exported
from .errors import VitfrostError
from .runtime.folder import EXPORT_FILE, is_export
from .vit.compat import is_timm_model
from .vit.load import LoadedModel, find_device, load_model, set_crop


def open_model(
    model: str | Path | LoadedModel,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    device: str | None = None,
    exports: bool = False,
) -> LoadedModel:
    """Load a timm name, an artifact's folder, or take a LoadedModel; crops given here replace the model's own.

    `device`: where what is loaded is to run (see `find_device`); a LoadedModel stays where it is unless one is given.
    `exports`: an exported model's folder is taken as well; it runs on the CPU, by its own runtime.
    Raises VitfrostError when weights or an image size are given for something that has its own.
    """
    place = None if device is None else find_device(device)
    if not exports and not isinstance(model, LoadedModel) and names_artifact(model) and is_export(model):
        raise VitfrostError(f"{model} is an exported model, which can only be evaluated and run; give the artifact it was exported from")
    loaded = _open(model, weights, image_size, crop_pct, crop_mode)
    if place is not None:
        loaded.model.to(place)
    return loaded


def _open(
    model: str | Path | LoadedModel,
    weights: str | Path | None,
    image_size: int | tuple[int, int] | None,
    crop_pct: float | None,
    crop_mode: str | None,
) -> LoadedModel:
    if not isinstance(model, LoadedModel) and not names_artifact(model):
        return load_model(str(model), weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode)
    if weights is not None or image_size is not None:
        shown = f"the loaded model {model.name}" if isinstance(model, LoadedModel) else f"the artifact {model}"
        raise VitfrostError(f"{shown} brings its own weights and image size; give neither")
    if isinstance(model, LoadedModel):
        return _with_crop(model, crop_pct, crop_mode)
    return _with_crop(load_exported(model) if is_export(model) else load_artifact(model), crop_pct, crop_mode)


def names_artifact(model: str | Path) -> bool:
    """True for a path, a name with a separator, and, if timm has no such model, that of a folder with a config.json or export.json."""
    if isinstance(model, Path) or "/" in model or "\\" in model:
        return True
    return any((Path(model) / name).is_file() for name in ("config.json", EXPORT_FILE)) and not is_timm_model(model)


def open_reference(
    reference: str | Path | LoadedModel,
    model: LoadedModel,
    weights: str | Path | None = None,
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    device: str | None = None,
    exports: bool = False,
) -> LoadedModel:
    """Load the model to compare with; arguments as of `open_model`.

    A reference given by the same timm name is built for the same image size and sees the same pixels as the model.
    Raises VitfrostError when it has other classes.
    """
    same = isinstance(reference, str) and reference == model.name
    loaded = open_model(
        reference, weights, model.image_size if same else None, crop_pct=crop_pct, crop_mode=crop_mode, device=device, exports=exports
    )
    if same:
        loaded.preprocessing = dict(model.preprocessing)
    if loaded.classes != model.classes:
        raise VitfrostError(
            f"the reference {loaded.name} has {loaded.classes} classes, {model.name} has {model.classes}; they must have the same classes"
        )
    return loaded


def _with_crop(loaded: LoadedModel, crop_pct: float | None, crop_mode: str | None) -> LoadedModel:
    changed = copy(loaded)
    changed.preprocessing = dict(loaded.preprocessing)
    set_crop(changed.preprocessing, crop_pct, crop_mode)
    return changed
