"""Image processors of transformers: how they prepare pictures, in timm's words. Needs no transformers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import VitfrostError, shown
from ..images.preprocessing import INTERPOLATIONS
from ..regular import is_file

log = logging.getLogger("vitfrost")
LARGEST_CONFIGURATION = 4 << 20
PROCESSOR = "preprocessor_config.json"
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none."""
    try:
        if not is_file(path) or path.stat().st_size > LARGEST_CONFIGURATION:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def processor_reading(processor: object) -> dict[str, Any]:
    """How an image processor prepares pictures: one of transformers, its dictionary, its file, or a folder with one.

    Raises VitfrostError for anything else.
    """
    if isinstance(processor, str | Path):
        path = Path(processor)
        found = read_object(path / PROCESSOR if path.is_dir() else path)
        return {} if found is None else reading(found)
    if callable(getattr(processor, "to_dict", None)):
        processor = processor.to_dict()  # type: ignore[attr-defined]
    if not isinstance(processor, Mapping):
        raise VitfrostError(f"a {type(processor).__name__} is no image processor; give one of transformers, or the folder it was saved to")
    return reading(processor)


def reading(processor: Mapping[str, Any]) -> dict[str, Any]:
    """How an image processor (preprocessor_config.json, or `to_dict()`) prepares pictures: mean, std, crop_pct, crop_mode and
    interpolation, as far as it says them.

    Raises VitfrostError for one that makes no sense, and for one that does what no reading here does.
    """
    try:
        return _colors(processor) | _crop(processor) | _interpolation(processor)
    except MALFORMED as error:
        raise VitfrostError(f"the image processor is damaged ({type(error).__name__}: {str(error)[:100]}); leave it out") from error


def _colors(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation in units of the full range, whatever number pixels are multiplied with: (f x - mean) / std of x from 0 to 255
    is (x / 255 - mean / 255 f) / (std / 255 f)."""
    found: dict[str, Any] = {}
    if processor.get("do_normalize", True) and processor.get("image_mean") and processor.get("image_std"):
        found = {name: tuple(map(float, processor[f"image_{name}"])) for name in ("mean", "std")}
    elif processor.get("do_normalize") is False:
        found = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    factor = processor.get("rescale_factor")
    factor = 1.0 if processor.get("do_rescale") is False else 1 / 255 if factor is None else float(factor)
    if math.isclose(255 * factor, 1, rel_tol=1e-6):
        return found
    if not (math.isfinite(factor) and factor > 0):
        raise VitfrostError(f"the image processor's rescale_factor {factor} is out of range; give a number above 0, such as 1/255")
    if not found:
        raise VitfrostError(
            f"the image processor multiplies pixels with {factor:g} and has no image_mean and image_std; leave it out, give mean and std"
        )
    return {name: tuple(value / (255 * factor) for value in values) for name, values in found.items()}


def _crop(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Without a crop a size of one number is that of a square, with one that of the shorter side."""
    size, crop, crops = processor.get("size"), processor.get("crop_size"), bool(processor.get("do_center_crop"))
    if processor.get("do_resize") is False:
        if crops:
            raise VitfrostError(
                "the image processor crops pictures without resizing them (do_resize false), which is not supported; leave it out, and "
                "give crop_pct and crop_mode"
            )
        log.warning("the image processor does not resize pictures (do_resize false); what is not of the model's size is resized to it")
        return {"crop_pct": 1.0, "crop_mode": "squash"}
    cropped = crop.get("height") if isinstance(crop, Mapping) else crop
    if isinstance(size, Mapping):
        shortest, height = size.get("shortest_edge"), size.get("height")
    else:
        shortest, height = (size, None) if crops else (None, size)
    if crops and cropped and shortest:
        return {"crop_pct": min(1.0, cropped / shortest), "crop_mode": "center"}
    if height:
        return {"crop_pct": min(1.0, cropped / height) if crops and cropped else 1.0, "crop_mode": "squash"}
    return {}


def _interpolation(processor: Mapping[str, Any]) -> dict[str, Any]:
    resample = processor.get("resample")
    if resample is None or processor.get("do_resize") is False:
        return {}
    name = getattr(resample, "value", resample)  # of Pillow's enumeration, or torchvision's
    if isinstance(name, int) and 0 <= name < len(RESAMPLE):
        name = RESAMPLE[name]
    if name not in INTERPOLATIONS:
        known = ", ".join(f"{number} ({each})" for number, each in enumerate(RESAMPLE))
        raise VitfrostError(f"the image processor's resample {shown(resample)} is unknown; give one of {known}")
    return {"interpolation": name}
